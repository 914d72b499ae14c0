"""Samples that are ended for their low confidence: which, where, and that none of them counts."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from exact import random_model
from exact_tools import ExactTools
from hypothesis import given
from hypothesis import strategies as st
from selection_cases import EXACT, LastDigit
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.algorithms.low_confidence import (
    LowConfidence,
    falls_at,
    group_of,
    lowest_confidence,
    threshold,
)
from sglang_power.algorithms.monitors import RULES, flat_rules, rules_of
from sglang_power.algorithms.votes import UntilDecided
from sglang_power.engines.tabular import TabularEngine
from sglang_power.request import BestOfRequest, VoteRequest
from sglang_power.rng import Key
from sglang_power.samplers.best_of import BestOf, BestOfSampler
from sglang_power.samplers.candidates import DROPPED, Selection
from sglang_power.samplers.dropping import Dropping
from sglang_power.samplers.samples import Samples
from sglang_power.samplers.scores import Scores
from sglang_power.samplers.vote import Vote, VoteSampler
from sglang_power.types import ROW_FIELDS, Continuation, FloatArray, ProposalLaw

LONG = random_model(3, vocab=5, horizon=12, stop_share=0.1)
GROUP, WARMUP, COUNT, SHARE = 3, 6, 20, 0.5
DROPPING = Dropping(SHARE, WARMUP, GROUP)

entropies = st.lists(st.floats(0.0, 4.0), min_size=1, max_size=30)


def rows_of(values: list[float]) -> FloatArray:
    rows = np.zeros((len(values), len(ROW_FIELDS)))
    rows[:, ROW_FIELDS.index("entropy")] = values
    return rows


def groups(values: list[float], group: int) -> list[float]:
    """The confidence of every group, straight from the definition; of all tokens where they are fewer."""
    size = min(group, len(values))
    return [-float(np.mean(values[i : i + size])) for i in range(len(values) - size + 1)]


# --- the rule -----------------------------------------------------------------------------------------


@given(values=entropies, group=st.integers(1, 9))
def test_the_lowest_confidence_is_that_of_the_least_confident_group(values: list[float], group: int) -> None:
    assert lowest_confidence(np.array(values), group) == pytest.approx(min(groups(values, group)), abs=1e-9)


@given(values=entropies, group=st.integers(1, 9), bar=st.floats(-4.0, 0.0))
def test_a_sample_falls_behind_its_first_group_below_the_threshold(
    values: list[float], group: int, bar: float
) -> None:
    found = groups(values, group)
    if min(abs(one - bar) for one in found) < 1e-9:
        return  # rounding decides
    below = [i + min(group, len(values)) - 1 for i, one in enumerate(found) if one < bar]
    rule = LowConfidence(bar, group)
    assert falls_at(rule, rows_of(values), ended=True) == (below[0] if below else None)
    if len(values) < group:
        assert falls_at(rule, rows_of(values), ended=False) is None


@given(values=entropies, group=st.integers(1, 9), cut=st.integers(0, 30), again=st.integers(0, 5))
def test_a_sample_that_is_resumed_or_shown_again_falls_at_the_same_row(
    values: list[float], group: int, cut: int, again: int
) -> None:
    rule = LowConfidence(-2.0, group)
    rows, cut = rows_of(values), min(cut, len(values))
    monitor, behind = rule.monitor(), rule.behind(rows[:cut]).monitor()
    one_go = [monitor.ends(i, row) for i, row in enumerate(rows.tolist())]
    assert [behind.ends(i, row) for i, row in enumerate(rows[cut:].tolist())] == one_go[cut:]
    shown = rule.monitor()
    for i, row in enumerate(rows.tolist()):
        assert shown.ends(i, row) == one_go[i]
        assert not any(shown.ends(max(0, i - back), row) for back in range(again))


@given(recent=st.lists(st.floats(0.0, 9.0), max_size=6), bar=st.floats(-9.0, 0.0), group=st.integers(7, 99))
def test_the_rule_travels(recent: list[float], bar: float, group: int) -> None:
    rule = LowConfidence(bar, group, tuple(recent))
    assert rules_of(flat_rules([rule])) == (rule,)
    assert RULES["confidence"] is LowConfidence


def test_groups_are_as_published_for_long_answers() -> None:
    assert [group_of(horizon) for horizon in (1, 48, 1024, 32_768, 131_072)] == [8, 8, 64, 2048, 2048]


# --- samples ------------------------------------------------------------------------------------------


class Deaf(TabularEngine):
    """Ends nothing."""

    async def generate(self, call: ContinuationCall) -> Continuation:
        return await super().generate(dataclasses.replace(call, rules=()))


class Hasty(TabularEngine):
    """Ends every call that carries a rule after two tokens."""

    async def generate(self, call: ContinuationCall) -> Continuation:
        if not call.rules:
            return await super().generate(call)
        short = dataclasses.replace(call, horizon=min(call.horizon, len(call.prefix) + 2), rules=())
        part = await super().generate(short)
        over = part.finished or len(call.prefix) + len(part.tokens) == call.horizon
        return dataclasses.replace(part, cut_short=not over)


def vote(engine: TabularEngine, seed: int, dropping: Dropping | None = DROPPING) -> Vote:
    samples = Samples(COUNT, LONG.horizon, ProposalLaw(1.0), tokens_each=10_000, dropping=dropping)
    return Vote(engine, LastDigit(), samples, Key(seed))


async def voted(engine: TabularEngine, seed: int, dropping: Dropping | None = DROPPING) -> Selection:
    return await vote(engine, seed, dropping).run(EXACT, "count", 1.0)


@pytest.mark.parametrize("seed", range(4))
async def test_later_samples_below_the_quantile_are_ended_and_the_others_are_whole(seed: int) -> None:
    selection, whole = await voted(TabularEngine(LONG), seed), await voted(TabularEngine(LONG), seed, None)
    told = selection.notes["dropped"]
    lowest = [lowest_confidence(one.tokens.entropy, GROUP) for one in whole.candidates]
    bar = threshold(lowest[:WARMUP], SHARE)
    assert told["threshold"] == pytest.approx(bar)
    assert told["samples"] == [i for i in range(WARMUP, COUNT) if lowest[i] < bar]
    assert told["samples"]
    assert "heuristic" in told
    for i, (one, full) in enumerate(zip(selection.candidates, whole.candidates, strict=True)):
        dropped = i in told["samples"]
        assert (one.dropped, one.note == DROPPED) == (dropped, dropped)
        kept = len(one.tokens)
        assert one.tokens.ids == full.tokens.ids[:kept]
        assert dropped or kept == len(full.tokens)
        if dropped and kept >= GROUP:
            assert lowest_confidence(one.tokens.first(kept - 1).entropy, GROUP) >= bar or kept == GROUP


@pytest.mark.parametrize("engine", [Deaf, Hasty])
async def test_whatever_the_engine_ends_the_rows_decide(engine: type[TabularEngine]) -> None:
    for seed in range(4):
        expected, found = await voted(TabularEngine(LONG), seed), await voted(engine(LONG), seed)
        assert [one.tokens.ids for one in found.candidates] == [one.tokens.ids for one in expected.candidates]
        assert (found.chosen, found.classes) == (expected.chosen, expected.classes)
        assert found.notes["dropped"] == expected.notes["dropped"]
        if engine is Deaf:
            assert found.usage.wasted > expected.usage.wasted


async def test_samples_that_were_ended_count_for_nobody() -> None:
    for seed in range(6):
        selection = await voted(TabularEngine(LONG), seed)
        dropped = set(selection.notes["dropped"]["samples"])
        for one in selection.classes:
            assert (one["representative"] is None) or not dropped & set(one["members"])
        assert selection.chosen not in dropped
        assert selection.notes["ess"] == pytest.approx(COUNT - len(dropped))
        assert [i for i, score in enumerate(selection.scores) if score is None] == sorted(dropped)


async def test_the_threshold_waits_for_the_first_samples() -> None:
    class Noting(TabularEngine):
        rules: list[int] = []  # noqa: RUF012  (of one test)

        async def generate(self, call: ContinuationCall) -> Continuation:
            self.rules.append(len(call.rules))
            return await super().generate(call)

    selection = await voted(Noting(LONG), 1)
    assert Noting.rules == [0] * WARMUP + [1] * (COUNT - WARMUP)
    assert selection.notes["rounds"] == 2


async def test_a_vote_with_dropping_may_be_decided() -> None:
    for seed in range(6):
        whole = await voted(TabularEngine(LONG), seed)
        early = await vote(TabularEngine(LONG), seed).run(EXACT, "count", 1.0, UntilDecided(COUNT, 4))
        drawn = early.notes["samples_drawn"]
        assert early.best.value == whole.best.value
        assert [one.tokens.ids for one in early.candidates] == [
            one.tokens.ids for one in whole.candidates[:drawn]
        ]


@pytest.mark.parametrize("score", ["mean_log_p", "log_p", "confidence"])
async def test_best_of_chooses_among_the_others(score: Any) -> None:
    samples = Samples(COUNT, LONG.horizon, ProposalLaw(1.0), tokens_each=10_000, dropping=DROPPING)
    scores = Scores(score, LastDigit())
    for seed in range(4):
        selection = await BestOf(TabularEngine(LONG), LastDigit(), samples, Key(seed)).run(scores)
        dropped = selection.notes["dropped"]["samples"]
        assert dropped
        assert all(selection.scores[i] is None for i in dropped)
        assert selection.chosen not in dropped


async def test_responses_say_that_it_is_a_heuristic() -> None:
    tools = ExactTools(TabularEngine(LONG), LastDigit(), Key(2), LONG.horizon)
    values = {"samples": 20, "drop_below": 0.5, "warmup": 6}
    voted = await VoteSampler().run(VoteRequest.model_validate(values), tools)
    best = await BestOfSampler().run(BestOfRequest.model_validate(values), tools)
    for outcome in (voted, best):
        assert outcome.report["dropped"]["group"] == 8
        assert "might have been right" in outcome.report["dropped"]["heuristic"]
        assert (outcome.params["drop_below"], outcome.params["warmup"]) == (0.5, 6)
