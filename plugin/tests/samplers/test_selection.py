"""Samplers that choose among answers, on the exact language model: counters, choices, laws of votes.

The vote's test of its law is a chi-square test at a fixed seed, kept above p = 1e-3; its controls are
rejected below 1e-6 at the same sample size.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from exact_tools import selection_report
from pydantic import ValidationError
from selection_cases import EXACT, MODEL, SAMPLING, AbortedAfter, L, LastDigit, cot
from sglang_power.algorithms.cot import CotConfig
from sglang_power.algorithms.cuts import UniformCut
from sglang_power.algorithms.mh import MHConfig
from sglang_power.engines.tabular import TabularEngine, TabularModel
from sglang_power.errors import ChainAbortedError, RequestError
from sglang_power.request import BestOfRequest, CotRequest, PowerRequest, VoteRequest, parse_request
from sglang_power.rng import Key
from sglang_power.samplers.best_of import BestOf
from sglang_power.samplers.candidates import Selection
from sglang_power.samplers.choosing import shares
from sglang_power.samplers.cot import Cot
from sglang_power.samplers.samples import Samples
from sglang_power.samplers.scores import Scores
from sglang_power.samplers.vote import Vote
from sglang_power.types import ProposalLaw, Usage

# --- cot ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
async def test_cot_sums_confidence_over_equal_answers(seed: int) -> None:
    model = TabularModel.random(seed, vocab=4, horizon=6)
    selection = await cot(model=model, k=4).run()
    sums: dict[str, float] = {}
    for one in selection.candidates:
        if one.value is not None and one.delta is not None:
            sums[one.value] = sums.get(one.value, 0.0) + one.delta
    winner = max(sums, key=lambda value: sums[value])
    assert selection.best.value == winner
    assert selection.best.delta == max(one.delta or -9 for one in selection.candidates if one.value == winner)
    assert {c["representative"]: c["weight"] for c in selection.classes if c["representative"]} == {
        value: pytest.approx(total) for value, total in sums.items()
    }


@pytest.mark.parametrize("seed", range(8))
async def test_cot_max_takes_the_most_confident_path(seed: int) -> None:
    model = TabularModel.random(seed, vocab=4, horizon=6)
    selection = await cot(model=model, k=4, aggregate=False).run()
    deltas = [one.delta for one in selection.candidates if one.delta is not None]
    assert selection.best.delta == max(deltas)


async def test_max_and_aggregate_can_differ() -> None:
    outcomes = []
    for seed in range(30):
        model = TabularModel.random(seed, vocab=5, horizon=5)
        runs = [await cot(model=model, k=5, aggregate=flag).run() for flag in (True, False)]
        outcomes.append(runs[0].best.value == runs[1].best.value)
    assert True in outcomes
    assert False in outcomes


async def test_every_cost_is_counted_once() -> None:
    selection = await cot().run()
    decoded = sum(len(one.tokens) for one in selection.candidates)
    reading = len(selection.candidates)
    assert selection.usage.decoded == decoded + reading + 1  # one token ranked the first ones
    assert selection.usage.wasted == 1
    # The question for the first tokens, and the paths: a launch each.
    assert selection.usage.depth == 2 + 1 + max(len(one.tokens) for one in selection.candidates)
    assert selection.usage.children == len(selection.candidates) + 1


async def test_without_any_answer_the_first_path_is_returned() -> None:
    always_stop = TabularModel(lambda _: np.array([0.8, 0.1, 0.1]), horizon=1)
    selection = await cot(model=always_stop, k=1).run()
    assert (selection.chosen, selection.reason) == (0, "no_answer")
    assert selection.best.tokens.ids == (0,)


async def test_paths_after_a_fork_share_the_trunk() -> None:
    """Forking behind the second token: the greedy trunk is one of the paths, and is not paid for twice."""
    model = TabularModel.random(5, vocab=4, horizon=6, concentration=3.0)
    greedy = (await cot(model=model, k=1).run()).best.tokens.ids
    assert len(greedy) > 2
    selection = await cot(model=model, k=4, after=lambda ids: 2 if len(ids) > 2 else None).run()
    assert {one.tokens.ids[:2] for one in selection.candidates} == {greedy[:2]}
    assert selection.candidates[0].tokens.ids == greedy
    assert len({one.tokens.ids[2] for one in selection.candidates}) == 4


async def test_paths_behind_a_forced_prefix_begin_with_it() -> None:
    selection = await cot(k=3, forced_prefix=(2, 1)).run()
    assert {one.tokens.ids[:2] for one in selection.candidates} == {(2, 1)}
    assert all(len(one.tokens) <= L for one in selection.candidates)


async def test_an_abort_leaves_the_choice_among_what_was_finished() -> None:
    config = CotConfig(3, L)
    run = Cot(AbortedAfter(MODEL, 2), LastDigit(), EXACT, config, Key(1), aggregate=True)
    selection = await run.run()
    assert (len(selection.candidates), selection.stopped_by) == (2, "abort")
    with pytest.raises(ChainAbortedError):
        await Cot(AbortedAfter(MODEL, 0), LastDigit(), EXACT, config, Key(1), aggregate=True).run()
    vote = await Vote(AbortedAfter(MODEL, 4), LastDigit(), samples(9), Key(1)).run(EXACT, "count", 1.0)
    assert (len(vote.candidates), vote.stopped_by) == (4, "abort")


# --- samples ------------------------------------------------------------------------------------------


PLAIN = ProposalLaw(1.0)


def samples(count: int, base: ProposalLaw | MHConfig = PLAIN) -> Samples:
    return Samples(count, L, base, tokens_each=1000)


async def vote(count: int, seed: int, weight: Any, alpha: float = 1.0, **more: Any) -> Selection:
    run = Vote(TabularEngine(MODEL), LastDigit(), samples(count, **more), Key(seed))
    return await run.run(EXACT, weight, alpha)


async def test_the_most_frequent_answer_wins_and_its_likeliest_sample_is_returned() -> None:
    selection = await vote(15, 3, "count")
    counts = Counter(one.value for one in selection.candidates if one.value is not None)
    assert selection.best.value is not None
    assert counts[selection.best.value] == max(counts.values())
    inside = [one for one in selection.candidates if one.value == selection.best.value]
    assert selection.best.log_p / len(selection.best.tokens) == max(
        one.log_p / len(one.tokens) for one in inside
    )


async def test_samples_of_two_runs_differ_and_of_one_seed_repeat() -> None:
    first, again, other = [await vote(6, seed, "count") for seed in (1, 1, 2)]
    ids = [[one.tokens.ids for one in run.candidates] for run in (first, again, other)]
    assert ids[0] == ids[1]
    assert ids[0] != ids[2]
    second_chain = Vote(TabularEngine(MODEL), LastDigit(), samples(6), Key(1, chain=1))
    assert [one.tokens.ids for one in await second_chain.candidates()] != ids[0]


def marginal(alpha: float) -> dict[str | None, float]:
    """Of the answer, under p^alpha."""
    law: dict[str | None, float] = {}
    for ids, mass in zip(MODEL.sequences(), MODEL.power_law(alpha), strict=True):
        at = len(ids) - (2 if MODEL.ends(ids) else 1)
        value = str(ids[at]) if at >= 0 else None
        law[value] = law.get(value, 0.0) + float(mass)
    return law


@pytest.mark.parametrize("base", [ProposalLaw(1.0), ProposalLaw(1.5)], ids=["from p", "tempered"])
async def test_power_weights_give_the_marginal_of_the_power_law(base: ProposalLaw) -> None:
    """20,000 draws; the weighted shares are within 4 standard errors, the unweighted ones are not."""
    alpha, count = 3.0, 20_000
    selection = await vote(count, 5, "power", alpha, base=base)
    log_weights = np.array(selection.scores, dtype=np.float64)
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    exact = marginal(alpha)
    values = np.array([one.value or "" for one in selection.candidates])
    wrong = 0
    for value, share in exact.items():
        inside = values == (value or "")
        error = math.sqrt(float((weights**2 * (inside - share) ** 2).sum()))
        assert abs(float(weights[inside].sum()) - share) < 4 * error + 1e-9
        wrong += abs(float(inside.mean()) - share) > 6 * math.sqrt(share * (1 - share) / count)
    assert wrong >= 2, "unweighted counts have another law"
    assert selection.notes["ess"] == pytest.approx(1 / float((weights**2).sum()))


async def test_ends_of_chains_at_the_same_alpha_count_equally() -> None:
    config = parse_power_config(alpha=2.0)
    selection = await vote(6, 2, "power", 2.0, base=config)
    assert selection.scores == pytest.approx([0.0] * 6)
    other = await vote(6, 2, "power", 3.0, base=config)
    assert other.scores == pytest.approx([one.log_p for one in other.candidates])


def parse_power_config(**values: Any) -> MHConfig:
    base = {"sampler": "power", "steps": 2, "block_size": 2, **values}
    request = VoteRequest.model_validate({"base": base})
    assert isinstance(request.base, PowerRequest)
    return request.base.mh_config(L)


@pytest.mark.parametrize("score", ["mean_log_p", "log_p", "confidence"])
async def test_best_of_returns_the_highest_score(score: Any) -> None:
    scores = Scores(score, LastDigit())
    selection = await BestOf(TabularEngine(MODEL), LastDigit(), samples(12), Key(4)).run(scores)
    known = [value for value in selection.scores if value is not None]
    assert selection.scores[selection.chosen] == max(known)


def test_shares_are_normalised_weights() -> None:
    assert shares([math.log(3.0), math.log(1.0), -math.inf]) == pytest.approx([0.75, 0.25, 0.0])
    assert shares([-math.inf]) == [0.0]


# --- requests and reports -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sampler": "cot", "k": 0}, "k=0: "),
        ({"sampler": "cot", "select": "best"}, "select='best': "),
        ({"sampler": "cot", "min_first_p": 1.0}, "min_first_p=1.0: "),
        ({"sampler": "cot", "answer": "regex"}, "answer_regex=None: required with answer='regex'"),
        ({"sampler": "cot", "answer_regex": "a"}, "answer_regex='a': not used with answer='number'"),
        ({"sampler": "cot", "fork_at": "after_prefix"}, "fork_prefix=None: "),
        ({"sampler": "cot", "fork_prefix": "A"}, "fork_prefix='A': "),
        ({"sampler": "cot", "continuation_policy": {"sampler": "x"}}, "continuation_policy.sampler='x': "),
        ({"sampler": "vote", "samples": 0}, "samples=0: "),
        ({"sampler": "vote", "weight": "votes"}, "weight='votes': "),
        ({"sampler": "vote", "alpha": 0.5}, "alpha=0.5: "),
        ({"sampler": "vote", "base": {"sampler": "vote"}}, "base.sampler='vote': "),
        ({"sampler": "vote", "base": {"sampler": "power", "seed": 1}}, "base.seed=1: "),
        ({"sampler": "vote", "base": {"sampler": "power", "alpha": 0}}, "base.alpha=0: "),
        ({"sampler": "best_of", "score": "luck"}, "score='luck': "),
    ],
)
def test_mistakes_name_field_and_value(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(values)
    assert str(caught.value).startswith(message)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("kind", "relation"), [("number", "number"), ("choice", "choice"), ("text", "normalised")]
)
def test_answers_are_compared_by_their_kind(kind: Any, relation: str) -> None:
    assert CotRequest(answer=kind).relation == relation
    assert CotRequest(answer=kind, equivalence="exact").relation == "exact"


async def test_chains_of_samples_keep_to_their_steps() -> None:
    chain = MHConfig(4.0, ProposalLaw(1.0), L, L, 8, UniformCut())
    children = []
    for limit in (None, 8, 1):
        drawn = Samples(3, L, chain, tokens_each=10_000, max_steps=limit)
        vote = Vote(TabularEngine(MODEL), LastDigit(), drawn, Key(2))
        children.append((await vote.run(EXACT, "count", 1.0)).usage.children)
    assert children == [3 * (1 + 8), 3 * (1 + 8), 3 * (1 + 1)]


def test_models_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        BestOfRequest().samples = 3


async def test_the_report_shows_every_path_and_what_it_cost() -> None:
    selection = await cot().run()
    report = selection_report(
        CotRequest(k=3),
        dataclasses.replace(selection, notes={"ess": 2.0}),
        horizon=L,
        sampling=SAMPLING,
        prompt_usage=Usage(prefilled=7, children=1),
    )
    assert len(report["paths"]) == len(selection.candidates)
    assert report["paths"][report["chosen"]["index"]]["text"] == selection.best.text
    assert report["prefilled_tokens"] == selection.usage.prefilled + 7
    assert (report["params"]["k"], report["params"]["temperature"]) == (3, 0.7)
    assert (report["law"], report["ess"], report["stopped_by"]) == ("selection", 2.0, "completed")
