"""Votes that end early, on the exact language model: the same winner, fewer samples, everything reported.

Rates are tested at fixed seeds against binomial bounds with a chance of 1e-6 of a false alarm each.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from exact_tools import ExactTools
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from selection_cases import EXACT, MODEL, AbortedAfter, LastDigit
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.algorithms.votes import UntilCertain, UntilDecided
from sglang_power.answers import DIFFERENT, EQUAL, Relation, Verdict
from sglang_power.answers.equivalence import FunctionRelation
from sglang_power.engines.tabular import TabularEngine, TabularModel
from sglang_power.errors import RequestError
from sglang_power.request import BestOfRequest, VoteRequest, parse_request
from sglang_power.rng import Key
from sglang_power.samplers import samples as samples_module
from sglang_power.samplers.candidates import Selection
from sglang_power.samplers.samples import Samples
from sglang_power.samplers.vote import Vote, VoteSampler
from sglang_power.types import Continuation, ProposalLaw

PLAIN = ProposalLaw(1.0)
LEVEL = 1e-6


def vote_of(engine: TabularEngine, count: int, seed: int, **more: Any) -> Vote:
    drawn = Samples(count, engine.model.horizon, PLAIN, tokens_each=1000, **more)
    return Vote(engine, LastDigit(), drawn, Key(seed))


async def decided(
    model: TabularModel, count: int, window: int, seed: int, relation: Relation = EXACT
) -> Selection:
    vote = vote_of(TabularEngine(model), count, seed)
    return await vote.run(relation, "count", 1.0, UntilDecided(count, window))


async def whole(model: TabularModel, count: int, seed: int, relation: Relation = EXACT) -> Selection:
    return await vote_of(TabularEngine(model), count, seed).run(relation, "count", 1.0)


# --- decided ------------------------------------------------------------------------------------------

RELATIONS: dict[str, Relation] = {
    "exact": EXACT,
    "neighbours": FunctionRelation(lambda a, b: abs(int(a) - int(b)) <= 1),
    "lopsided": FunctionRelation(lambda a, b: int(a) <= int(b) <= int(a) + 2),
}
"""The second is not transitive: who stands for a class decides what joins it. The third is not symmetric."""


@settings(max_examples=60)
@given(
    model=st.integers(0, 10**6),
    vocab=st.integers(2, 7),
    count=st.integers(1, 24),
    window=st.integers(1, 12),
    seed=st.integers(0, 10**6),
    relation=st.sampled_from(sorted(RELATIONS)),
)
def test_the_winning_class_is_that_of_the_whole_vote(
    model: int, vocab: int, count: int, window: int, seed: int, relation: str
) -> None:
    table = TabularModel.random(model, vocab=vocab, horizon=3, concentration=0.6)

    async def both() -> tuple[Selection, Selection]:
        same = RELATIONS[relation]
        return await decided(table, count, window, seed, same), await whole(table, count, seed, same)

    early, full = asyncio.run(both())
    drawn = early.notes["samples_drawn"]
    assert [one.tokens.ids for one in early.candidates] == [one.tokens.ids for one in full.candidates[:drawn]]
    assert class_of(early) == class_of(full)
    first = [[i for i in one["members"] if i < drawn] for one in full.classes]
    assert [list(one["members"]) for one in early.classes] == [members for members in first if members]
    if early.notes["stopped"] == "all_drawn":
        assert (drawn, early.chosen, early.reason) == (count, full.chosen, full.reason)
    else:
        assert (early.notes["stopped"], early.reason) == ("decided", "largest")
        inside = early.classes[class_of(early)]["members"]
        assert early.best.mean_log_p == max(early.candidates[i].mean_log_p for i in inside)


def class_of(selection: Selection) -> int:
    return next(i for i, one in enumerate(selection.classes) if selection.chosen in one["members"])


async def test_fewer_samples_are_drawn_whatever_the_window() -> None:
    drawn = [
        [(await decided(MODEL, 32, window, seed)).notes["samples_drawn"] for seed in range(20)]
        for window in (1, 4, 32)
    ]
    assert drawn[0] == drawn[1] == drawn[2]
    assert 17 <= min(drawn[0]) < max(drawn[0])
    assert sum(drawn[0]) < 0.95 * 32 * 20


async def test_cost_and_depth_are_those_of_the_rounds() -> None:
    engine = Counting(MODEL)
    selection = await vote_of(engine, 24, 5).run(EXACT, "count", 1.0, UntilDecided(24, 6))
    lengths = [len(one.tokens) for one in selection.candidates]
    drawn, rounds = selection.notes["samples_drawn"], selection.notes["rounds"]
    assert drawn == len(lengths) < 24
    assert selection.usage.children == drawn
    assert selection.usage.decoded == sum(lengths) + drawn  # LastDigit reads for a token
    longest, start = [], 0
    while start < drawn:
        size = engine.together[start]
        longest.append(max(lengths[start : start + size]))
        start += size
    assert rounds == len(longest) > 1
    assert selection.usage.depth == rounds + sum(longest)
    at_once = await whole(MODEL, 24, 5)
    assert at_once.usage.depth == 1 + max(len(one.tokens) for one in at_once.candidates)


class Counting(TabularEngine):
    """Notes how many calls run at the same time."""

    def __init__(self, model: TabularModel) -> None:
        super().__init__(model)
        self.running = 0
        self.together: list[int] = []

    async def generate(self, call: ContinuationCall) -> Continuation:
        self.running += 1
        await asyncio.sleep(0)
        self.together.append(self.running)
        await asyncio.sleep(0)
        self.running -= 1
        return await super().generate(call)


async def test_the_samples_of_a_round_start_in_one_tick() -> None:
    engine = Counting(MODEL)
    await vote_of(engine, 24, 5).run(EXACT, "count", 1.0, UntilDecided(24, 6))
    assert engine.together[:12] == [6] * 12


async def test_a_crowded_server_shortens_the_rounds_and_changes_no_vote() -> None:
    class Crowded(Counting):
        def share(self, wanted: int) -> int:
            return min(wanted, 2)

    crowded = Crowded(MODEL)
    narrow = await vote_of(crowded, 24, 5).run(EXACT, "count", 1.0, UntilDecided(24, 6))
    wide = await vote_of(Counting(MODEL), 24, 5).run(EXACT, "count", 1.0, UntilDecided(24, 6))
    assert max(crowded.together) == 2
    assert narrow.notes["rounds"] > wide.notes["rounds"]
    assert narrow.notes["samples_drawn"] == wide.notes["samples_drawn"]
    assert (narrow.chosen, narrow.classes) == (wide.chosen, wide.classes)


class Judge:
    """Equal digits are the same; notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    async def same(self, a: str, b: str) -> Verdict:
        self.asked.append((a, b))
        return EQUAL if a == b else DIFFERENT


async def test_a_judge_is_asked_once_about_two_answers() -> None:
    judge, other = Judge(), Judge()
    early = await decided(MODEL, 32, 4, 3, judge)
    await whole(MODEL, 32, 3, other)
    assert len(judge.asked) == len(set(judge.asked)) == early.comparisons
    assert judge.asked == other.asked[: len(judge.asked)]


# --- certain ------------------------------------------------------------------------------------------


def answer_law(model: TabularModel) -> dict[str | None, float]:
    law: dict[str | None, float] = {}
    for ids, mass in zip(model.sequences(), model.power_law(1.0), strict=True):
        at = len(ids) - (2 if model.ends(ids) else 1)
        value = str(ids[at]) if at >= 0 else None
        law[value] = law.get(value, 0.0) + float(mass)
    return law


MODELS = {seed: TabularModel.random(seed, vocab=4, horizon=4, concentration=0.5) for seed in (1, 4, 11)}


@pytest.mark.parametrize("name", MODELS)
async def test_certain_votes_are_for_the_commonest_answer_of_the_law(name: int) -> None:
    model, runs = MODELS[name], 40
    law = {value: mass for value, mass in answer_law(model).items() if value is not None}
    mode, second = sorted(law, key=lambda value: -law[value])[:2]
    certain = wrong = 0
    for seed in range(runs):
        rule = UntilCertain(64, 8, 0.05)
        selection = await vote_of(TabularEngine(model), 64, seed).run(EXACT, "count", 1.0, rule)
        if selection.notes["stopped"] == "certain":
            certain += 1
            wrong += selection.best.value != mode
            assert selection.notes["samples_drawn"] < 64 or rule.reason == "certain"
    assert wrong <= stats.binom.isf(LEVEL, runs, 0.05)
    if law[mode] - law[second] > 0.3:
        assert certain >= runs / 2


def test_one_of_the_models_has_a_clear_answer() -> None:
    shares = [sorted(answer_law(model).values())[-2:] for model in MODELS.values()]
    assert any(most - second > 0.3 for second, most in shares)


# --- limits -------------------------------------------------------------------------------------------


async def test_an_abort_in_mid_vote_leaves_the_rounds_before_it() -> None:
    for calls, kept in ((9, 9), (8, 8), (3, 3)):
        vote = vote_of(AbortedAfter(MODEL, calls), 30, 1)
        selection = await vote.run(EXACT, "count", 1.0, UntilDecided(30, 8))
        assert (len(selection.candidates), selection.stopped_by) == (kept, "abort")
        assert selection.notes["stopped"] == "abort"
        assert selection.notes["samples_drawn"] == kept


async def test_no_round_begins_behind_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 2.0])
    monkeypatch.setattr(samples_module, "clock", SimpleNamespace(now=lambda: next(moments)))
    vote = vote_of(TabularEngine(MODEL), 30, 1, deadline=1.0)
    monkeypatch.setattr(TabularEngine, "generate", _unhurried(TabularEngine.generate))
    selection = await vote.run(EXACT, "count", 1.0, UntilDecided(30, 5))
    assert (len(selection.candidates), selection.notes["rounds"]) == (10, 2)
    assert (selection.stopped_by, selection.notes["stopped"]) == ("deadline_ms", "deadline_ms")


def _unhurried(generate: Any) -> Any:
    async def without_deadline(self: TabularEngine, call: ContinuationCall) -> Continuation:
        result: Continuation = await generate(
            self, ContinuationCall(call.prefix, call.horizon, call.law, call.seed)
        )
        return result

    return without_deadline


# --- requests -----------------------------------------------------------------------------------------

CHAINS: dict[str, Any] = {"base": {"sampler": "power"}}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"stopping": "soon"}, "stopping='soon': "),
    (
        {"stopping": "decided", "weight": "power"},
        "stopping='decided': with weight='power' there is no useful",
    ),
    ({"stopping": "decided", "weight": "confidence"}, "stopping='decided': with weight='confidence' there"),
    ({"stopping": "certain", "weight": "power"}, "stopping='certain': with weight='power' there is no"),
    ({"stopping": "certain", "samples": 7}, "stopping='certain': with error=0.05 it takes 8 samples"),
    ({"stopping": "certain", "error": 1e-9, "samples": 32}, "stopping='certain': with error=1e-09 it takes"),
    ({"stopping": "never", "window": 4}, "window=4: belongs to a stopping rule"),
    ({"weight": "confidence", "window": 4}, "window=4: belongs to a stopping rule"),
    ({"window": 0}, "window=0: "),
    ({"window": 2.0}, "window=2.0: "),
    ({"error": 0.1}, "error=0.1: belongs to stopping='certain'"),
    ({"stopping": "certain", "error": 0.0}, "error=0.0: "),
    ({"stopping": "certain", "error": 1}, "error=1: "),
    ({"warmup": 4}, "warmup=4: belongs to drop_below"),
    ({"drop_below": 0.5}, "drop_below=0.5: the first 16 samples run to their end, which are all 8"),
    ({"drop_below": 1.0, "samples": 32}, "drop_below=1.0: "),
    ({"drop_below": 0.5, "warmup": 4, **CHAINS}, "drop_below=0.5: a chain replaces its tokens"),
    ({"drop_below": 0.5, "warmup": 4, "weight": "power"}, "drop_below=0.5: samples that are left out make"),
    ({"drop_below": 0.5, "warmup": 4, "stopping": "certain"}, "drop_below=0.5: samples that are left out"),
]
BAD_BEST_OF: list[tuple[dict[str, Any], str]] = [
    ({"stopping": "decided"}, "stopping='decided': a maximum has no bound"),
    ({"stopping": "certain"}, "stopping='certain': a maximum has no bound"),
    ({"window": 4}, "window=4: belongs to a stopping rule"),
    ({"error": 0.1}, "error=0.1: belongs to stopping='certain'"),
    ({"warmup": 4}, "warmup=4: belongs to drop_below"),
    ({"drop_below": 0.5, "warmup": 4, **CHAINS}, "drop_below=0.5: a chain replaces its tokens"),
]


@pytest.mark.parametrize(
    ("sampler", "values", "message"),
    [("vote", *each) for each in BAD] + [("best_of", *each) for each in BAD_BEST_OF],
)
def test_mistakes_name_field_and_value(sampler: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_request({"sampler": sampler, **values})
    assert str(caught.value).startswith(message)
    assert caught.value.hint


def test_counts_are_decided_by_default_and_other_weights_never() -> None:
    rules = [VoteRequest(weight=weight).rule for weight in ("count", "confidence", "power")]
    assert rules == ["decided", "never", "never"]
    assert BestOfRequest().rule == "never"


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"stopping": "never"},
        {"stopping": "certain", "error": 0.1, "window": 4},
        {"samples": 20, "drop_below": 0.2},
        {"samples": 20, "drop_below": 0.2, "stopping": "never", "warmup": 3},
        {"weight": "power"},
    ],
)
def test_the_parameters_in_force_can_be_sent_again(values: dict[str, Any]) -> None:
    asked = VoteRequest.model_validate(values)
    again = VoteRequest.model_validate(asked.echo())
    assert again.echo() == asked.echo()
    assert again.rule == asked.rule
    assert ("window" in asked.echo()) == (asked.rule != "never")


def test_the_whole_number_of_samples_has_to_be_affordable() -> None:
    assert VoteRequest(samples=20).needs.answers == 20


@pytest.mark.parametrize(
    ("values", "stopped"),
    [({}, "decided"), ({"stopping": "never"}, "all_drawn"), ({"stopping": "certain"}, "certain")],
)
async def test_the_response_says_how_many_were_drawn_and_why_no_more(
    values: dict[str, Any], stopped: str
) -> None:
    asked = VoteRequest.model_validate({"samples": 64, **values})
    outcomes = [
        await VoteSampler().run(
            asked, ExactTools(TabularEngine(MODEL), LastDigit(), Key(seed), MODEL.horizon)
        )
        for seed in range(20)
    ]
    reports = [outcome.report for outcome in outcomes]
    assert stopped in {report["stopped"] for report in reports}
    for report in reports:
        assert report["samples_drawn"] == len(report["paths"])
        assert (report["stopped"] == "all_drawn") <= (report["samples_drawn"] == 64)
        assert report["rounds"] >= 1


async def test_a_vote_of_another_choice_is_drawn_anew() -> None:
    asked = VoteRequest(samples=16)
    ids = []
    for chain in (0, 1):
        tools = ExactTools(TabularEngine(MODEL), LastDigit(), Key(3, chain), MODEL.horizon)
        ids.append([path["text"] for path in (await VoteSampler().run(asked, tools)).report["paths"]])
    assert ids[0] != ids[1]
