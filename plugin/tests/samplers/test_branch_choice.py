"""From leaves to one answer, on the exact model: scores, votes, the reported tree."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from branch_cases import EXACT, TREE, chosen, ids
from naive_tree import SEEDS, Ledger, config, model, naive_tree
from selection_cases import LastDigit
from sglang_power.algorithms.engine import ContinuationCall, RankedToken
from sglang_power.engines.tabular import Prefix, TabularEngine, TabularModel
from sglang_power.samplers import tree as trees
from sglang_power.samplers.scores import AnswerReward, Scores
from sglang_power.types import Continuation, ProposalLaw, Usage

# --- scores -------------------------------------------------------------------------------------------


def naive_score(name: str, table: TabularModel, y: Prefix) -> float | None:
    scored = table.score(y, ProposalLaw(1.0))
    if name == "confidence":
        at = len(y) - (2 if table.ends(y) else 1)
        if at < 0:
            return None
        p = table.probs(y[:at])
        return float(p[y[at]] - np.delete(p, y[at]).max())
    log_p = float(scored.log_p.sum())
    return {"mean_log_p": log_p / len(y), "log_p": log_p, "power": 3.0 * log_p}[name]


@pytest.mark.parametrize("name", ["mean_log_p", "log_p", "power", "confidence"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_the_leaf_of_highest_score_is_returned(seed: int, name: Any) -> None:
    table = model(seed)
    selection = await chosen(table, scores=Scores(name, LastDigit(), alpha=3.0))
    assert sorted(ids(selection)) == sorted(naive_tree(config(**TREE), table))
    expected = [naive_score(name, table, y) for y in ids(selection)]
    assert selection.scores == pytest.approx(expected)
    known = [value for value in expected if value is not None]
    if not known:
        assert (selection.chosen, selection.reason) == (0, "no_answer")
        return
    assert selection.scores[selection.chosen] == pytest.approx(max(known))
    assert selection.reason == name


async def test_scores_choose_differently() -> None:
    """So that the test above can fail."""
    answers = {
        name: [(await chosen(model(s), scores=Scores(name, LastDigit()))).best.tokens.ids for s in SEEDS]
        for name in ("mean_log_p", "log_p", "confidence")
    }
    assert len({tuple(each) for each in answers.values()}) == 3


class Stub:
    """Judges by a table, counts its calls; as an Evaluator and as an AnswerReward."""

    def __init__(self, of: dict[str, float | None]) -> None:
        self._of, self.asked = of, 0

    async def right(self, answer: str) -> tuple[float, Usage]:
        self.asked += 1
        return self._of.get(answer) or -9.0, Usage(decoded=1, wasted=1, prefilled=7, depth=2, children=1)

    async def __call__(self, ids: Sequence[int], finished: bool) -> float | None:
        self.asked += 1
        return self._of.get(LastDigit().text(ids, finished))

    def report(self) -> dict[str, Any]:
        return {"calls": self.asked}


async def test_the_judges_favourite_is_returned_and_its_cost_is_told() -> None:
    plain = await chosen(model(1))
    means = [one.mean_log_p for one in plain.candidates]
    worst = means.index(min(means))
    judge = Stub({plain.candidates[worst].text: -0.5})
    judged = await chosen(model(1), scores=Scores("self_evaluation", LastDigit(), evaluator=judge))
    assert (judged.chosen, judged.reason) == (worst, "self_evaluation")
    calls = len(judged.candidates)
    assert judge.asked == calls
    launch_and_token = 2
    assert judged.usage == plain.usage + Usage(calls, 7 * calls, calls, launch_and_token, calls)
    assert judged.notes["judge"] == {"calls": calls, "decoded_tokens": calls, "prefilled_tokens": 7 * calls}


def rewarded(of: dict[str, float | None]) -> Scores:
    stub: AnswerReward = Stub(of)
    return Scores("reward", LastDigit(), reward=stub)


async def test_a_leaf_without_a_reward_loses_and_all_without_one_give_the_likeliest() -> None:
    texts = [one.text for one in (await chosen(model(1))).candidates]
    assert len(set(texts)) == len(texts) >= 3
    some = await chosen(model(1), scores=rewarded({texts[1]: -5.0, texts[2]: -6.0}))
    assert (some.chosen, some.reason) == (1, "reward")
    assert some.scores == (None, -5.0, -6.0, *[None] * (len(texts) - 3))
    assert some.notes["reward"] == {"calls": len(texts)}
    none = await chosen(model(1), scores=rewarded({}))
    means = [one.mean_log_p for one in none.candidates]
    assert (none.chosen, none.reason) == (means.index(max(means)), "no_score")
    assert means.index(max(means)) > 0, "control: the first one is another"


# --- votes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
async def test_the_vote_counts_leaves_by_their_answers(seed: int) -> None:
    selection = await chosen(model(seed), vote=EXACT)
    values = [one.value for one in selection.candidates]
    counts = Counter(value for value in values if value is not None)
    if not counts:
        assert (selection.chosen, selection.reason) == (0, "no_answer")
        return
    most = max(counts.values())
    winner = selection.best.value
    assert winner is not None
    assert counts[winner] == most
    inside = [one.mean_log_p for one in selection.candidates if one.value == winner]
    assert selection.best.mean_log_p == max(inside)
    assert selection.reason == ("tie" if list(counts.values()).count(most) > 1 else "largest")
    weights = {one["representative"]: one["weight"] for one in selection.classes if one["representative"]}
    assert weights == pytest.approx({value: n / sum(counts.values()) for value, n in counts.items()})


async def test_ties_are_drawn_from_the_seed() -> None:
    tied = [s for s in SEEDS if (await chosen(model(s), vote=EXACT)).reason == "tie"]
    winners = [(await chosen(model(tied[0]), seed, vote=EXACT)).best.value for seed in range(20)]
    again = [(await chosen(model(tied[0]), seed, vote=EXACT)).best.value for seed in range(20)]
    assert len(set(winners)) > 1
    assert winners == again


# --- the tree that is reported ------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["tree", "lookahead", "beam"])
async def test_the_reported_tree_spells_the_answer(policy: str) -> None:
    search = {"policy": policy, "max_depth": 4, **({"beam": 2} if policy == "beam" else {})}
    selection = await chosen(model(1), search=search, return_tree=True)
    notes = json.loads(json.dumps(selection.notes, allow_nan=False))
    nodes = notes["tree"]["nodes"]
    fates = Counter(node["fate"] for node in nodes)
    assert fates["chosen"] == 1
    assert fates["chosen"] + fates["leaf"] == len(selection.candidates)
    assert fates["open"] == 0
    assert (notes["forks"], notes["branches"]) == (fates["forked"], len(nodes) - 1)
    assert (fates["pruned"] > 0) == (policy != "tree")
    at: int | None = next(node["node"] for node in nodes if node["fate"] == "chosen")
    spelled: list[int] = []
    while at is not None:
        node = nodes[at]
        assert node["span"] == [node["span"][0], node["span"][0] + len(node["ids"])]
        spelled = node["ids"] + spelled
        at = node["parent"]
    assert tuple(spelled) == selection.best.tokens.ids
    assert "tree" not in (await chosen(model(1), search=search)).notes


@pytest.mark.parametrize("policy", ["tree", "lookahead", "beam"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_every_decoded_token_is_in_the_tree_or_wasted(seed: int, policy: str) -> None:
    engine = Ledger(model(seed))
    search = {"policy": policy, "max_depth": 4, **({"beam": 2} if policy == "beam" else {})}
    selection = await chosen(model(seed), engine=engine, search=search, return_tree=True)
    shown = sum(len(node["ids"]) for node in selection.notes["tree"]["nodes"])
    assert engine.total.decoded == shown + selection.usage.wasted


class Unpunctual(TabularEngine):
    """Answers in another order than it was asked."""

    def __init__(self, table: TabularModel, seed: int) -> None:
        super().__init__(table)
        self._delays = np.random.default_rng(seed)

    async def generate(self, call: ContinuationCall) -> Continuation:
        await self._wait()
        return await super().generate(call)

    async def most_likely(self, prefix: Prefix, count: int) -> tuple[list[RankedToken], Usage]:
        await self._wait()
        return await super().most_likely(prefix, count)

    async def _wait(self) -> None:
        for _ in range(int(self._delays.integers(20))):
            await asyncio.sleep(0)


@pytest.mark.parametrize("policy", ["tree", "lookahead", "beam"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_the_order_of_the_engines_answers_changes_nothing(seed: int, policy: str) -> None:
    """Continuations are drawn, from seeds that hang on the numbers of branches."""
    search = {"policy": policy, "max_depth": 4, "law": ProposalLaw(1.0)}
    runs = [
        await chosen(model(seed), engine=engine, search=search, return_tree=True)
        for engine in (TabularEngine(model(seed)), *(Unpunctual(model(seed), i) for i in range(3)))
    ]
    for run in runs[1:]:
        assert run.notes == runs[0].notes
        assert ids(run) == ids(runs[0])


async def test_a_large_tree_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (await chosen(model(1), return_tree=True)).notes["tree"]
    monkeypatch.setattr(trees, "MAX_NODES", 4)
    monkeypatch.setattr(trees, "MAX_NODE_TOKENS", 1)
    cut = (await chosen(model(1), return_tree=True)).notes["tree"]
    assert len(cut["nodes"]) == 4
    assert cut["omitted"] == len(whole["nodes"]) - 4 > 0
    assert [node["span"] for node in cut["nodes"]] == [node["span"] for node in whole["nodes"][:4]]
    assert max(len(node["ids"]) for node in whole["nodes"][:4]) > 1
    assert max(len(node["ids"]) for node in cut["nodes"]) == 1
