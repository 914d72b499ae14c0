"""One chain's driver: budgets never cost the answer, usage is exact, drafts, observers, cancellation.

Deterministic: fixed seeds, engines that record what they are asked, and a clock that ticks once per look.
Error rate 0; no timing is asserted.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import itertools
import math

import exact
import numpy as np
import pytest
from sglang_power import clock
from sglang_power.algorithms import acceptance
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.algorithms.mh import MHConfig, Schedule
from sglang_power.algorithms.steps import ChainState, Info
from sglang_power.engines.tabular import Prefix, TabularEngine, TabularModel
from sglang_power.errors import HostError
from sglang_power.rng import Key, Purpose
from sglang_power.samplers.budgets import Budget, StoppedBy
from sglang_power.samplers.chain import Chain, ChainResult, RejectionCheck
from sglang_power.types import Continuation, ProposalLaw, Tokens, Usage

LONG = exact.random_model(3, vocab=5, horizon=12, stop_share=0.3)
SEEDS = range(6)

CONFIGS: dict[str, MHConfig] = {
    "early rejection": exact.make_config(LONG, block_size=4, steps=3, early_rejection=True),
    "entropy, tau=1": exact.make_config(
        LONG, law=ProposalLaw(1.0), cut=exact.ENTROPY, block_size=4, steps=3, early_rejection=True
    ),
    "paper": exact.make_config(LONG, block_size=4, steps=3, schedule="paper", early_rejection=True),
    "lookback": exact.make_config(LONG, block_size=4, steps=3, lookback_blocks=1, early_rejection=True),
    "kappa above alpha": exact.make_config(LONG, alpha=1.0, law=ProposalLaw(2.0), block_size=4, steps=3),
    "blocks that do not divide L": exact.make_config(LONG, block_size=5, steps=2),
}

every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))


class RecordingEngine:
    """A tabular engine that remembers every call and its answer."""

    def __init__(self, model: TabularModel) -> None:
        self._engine = TabularEngine(model)
        self.calls: list[ContinuationCall] = []
        self.answers: list[Continuation] = []

    async def generate(self, call: ContinuationCall) -> Continuation:
        self.calls.append(call)
        answer = await self._engine.generate(call)
        self.answers.append(answer)
        return answer

    def share(self, wanted: int) -> int:
        return wanted


@dataclasses.dataclass
class Recorded:
    """A finished chain with everything that was seen of it."""

    result: ChainResult
    engine: RecordingEngine
    seen: list[tuple[ChainState, Info | None]]


def record(
    config: MHConfig,
    seed: int,
    *,
    model: TabularModel = LONG,
    budget: Budget = exact.AMPLE,
    draft: Prefix | None = None,
    shadow: bool = False,
) -> Recorded:
    engine = RecordingEngine(model)
    seen: list[tuple[ChainState, Info | None]] = []

    def observer(state: ChainState, info: Info | None) -> None:
        seen.append((state, info))

    chain = Chain(
        engine, config, Key(seed), budget, observer, rejection_check=RejectionCheck() if shadow else None
    )
    return Recorded(asyncio.run(chain.run(draft)), engine, seen)


@functools.cache
def unlimited(config: MHConfig, seed: int, draft: Prefix | None = None) -> ChainResult:
    """The same chain without a budget that could end it."""
    return record(config, seed, draft=draft).result


def is_whole(result: ChainResult, model: TabularModel = LONG) -> bool:
    """The answer has stopped, or has as many tokens as it may; and its flag says which."""
    ids = result.state.tokens.ids
    assert result.state.finished == model.ends(ids)
    assert len(ids) <= model.horizon
    return result.state.finished or len(ids) == model.horizon


def assert_begins_like(result: ChainResult, whole: ChainResult) -> None:
    """Every step of the limited chain is the step that the unlimited one made."""
    assert len(result.infos) <= len(whole.infos)
    for one, other in zip(result.infos, whole.infos, strict=False):
        for field in ("stage", "step", "cut", "current_length", "log_u", "accepted"):
            assert getattr(one, field) == getattr(other, field)


def assert_scored(tokens: Tokens, config: MHConfig, model: TabularModel = LONG) -> None:
    np.testing.assert_array_equal(tokens.rows, model.score(tokens.ids, config.law).rows)


# --- a whole run --------------------------------------------------------------------------------------


@every_config
def test_a_run_ends_with_a_whole_answer_and_the_statistics_of_its_own_rows(config: MHConfig) -> None:
    for seed in SEEDS:
        result = record(config, seed).result
        assert result.stopped_by == "completed"
        assert is_whole(result)
        assert_scored(result.state.tokens, config)


@every_config
def test_the_same_key_replays_the_same_chain(config: MHConfig) -> None:
    one, other = record(config, 5), record(config, 5)
    assert one.engine.calls == other.engine.calls
    assert one.result.state.tokens.ids == other.result.state.tokens.ids
    assert one.result.usage == other.result.usage


@every_config
def test_no_two_calls_share_a_seed(config: MHConfig) -> None:
    for seed in SEEDS:
        drawn = [call.seed for call in record(config, seed).engine.calls]
        assert len(set(drawn)) == len(drawn)


@every_config
def test_infos_hold_the_proposal_every_term_and_the_decision(config: MHConfig) -> None:
    recorded = record(config, 1)
    drawn = _proposal_seeds(recorded)
    calls = zip(recorded.engine.calls, recorded.engine.answers, strict=True)
    proposals = [(call, answer) for call, answer in calls if call.seed in drawn]
    assert len(proposals) == len(recorded.result.infos)
    for info, (call, answer) in zip(recorded.result.infos, proposals, strict=True):
        assert info.cut == len(call.prefix)
        assert info.proposal is answer.tokens
        assert info.proposal_finished == answer.finished
        assert info.early_rejected == answer.cut_short
        assert info.log_ratio == acceptance.log_ratio(info.terms)
        assert info.accepted == (info.log_u < info.log_ratio)


def _proposal_seeds(recorded: Recorded) -> set[int]:
    key = Key(1)
    return {key.child_seed(info.step, Purpose.PROPOSAL) for info in recorded.result.infos}


# --- stages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["exact", "paper"])
def test_stages_follow_the_schedule(schedule: Schedule) -> None:
    config = exact.make_config(LONG, block_size=4, steps=3, schedule=schedule)
    ways = set()
    for seed in range(60):
        infos = record(config, seed).result.infos
        stages = [stage for stage, _ in itertools.groupby(info.stage for info in infos)]
        assert [info.step for info in infos] == list(range(len(infos)))
        assert len(infos) == config.steps * len(stages)
        assert all(info.cut + len(info.proposal) <= config.stage_horizon(info.stage) for info in infos)
        ways.add(tuple(stages))
    if schedule == "exact":
        assert ways == {(3,), (1, 3), (1, 2, 3)}
    else:
        assert ways == {(1,), (1, 2), (1, 2, 3)}


@pytest.mark.parametrize("schedule", ["exact", "paper"])
def test_what_an_extension_finishes_goes_to_the_last_stage_at_once(schedule: Schedule) -> None:
    config = exact.make_config(LONG, block_size=4, steps=3, schedule=schedule)
    found = {True: 0, False: 0}
    for seed in range(60):
        seen = record(config, seed).seen
        for (state, info), (_, following) in itertools.pairwise(seen):
            if info is None and following is not None:
                assert state.stage_step == 0
                skips = state.finished and schedule == "exact"
                assert following.stage == (config.stages if skips else math.ceil(len(state.tokens) / 4))
                found[skips] += 1
    assert found[False] > 10
    assert (found[True] > 10) == (schedule == "exact")


def test_lookback_freezes_whole_blocks_and_never_touches_them_again() -> None:
    for seed in range(30):
        recorded = record(CONFIGS["lookback"], seed)
        for (before, _), (after, info) in itertools.pairwise(recorded.seen):
            assert after.frozen >= before.frozen
            assert after.tokens.ids[: before.frozen] == before.tokens.ids[: before.frozen]
            assert info is None or info.cut >= before.frozen
            assert after.frozen in (0, 4, 8)
        if all(not state.finished for state, _ in recorded.seen[:-1]):
            assert recorded.result.state.frozen == 8


# --- what a run costs ---------------------------------------------------------------------------------


def test_usage_by_hand() -> None:
    """Sequences of exactly 4 tokens, blocks of 2, one step each: 2, 2 - m, 2 and 4 - m' tokens."""
    model = exact.endless_model(1)
    config = exact.make_config(model, steps=1)
    for seed in SEEDS:
        result = record(config, seed, model=model).result
        first, second = (info.cut for info in result.infos)
        decoded = 2 + (2 - first) + 2 + (4 - second)
        assert result.usage == Usage(decoded=decoded, prefilled=4, wasted=0, depth=decoded + 4, children=4)


def test_usage_of_a_draft_by_hand() -> None:
    """Forced decoding of 3 tokens, 1 token to the horizon, two steps."""
    model = exact.endless_model(1)
    config = exact.make_config(model, steps=2)
    for seed in SEEDS:
        result = record(config, seed, model=model, draft=(1, 2, 0)).result
        decoded = 3 + 1 + sum(4 - info.cut for info in result.infos)
        assert result.usage == Usage(decoded=decoded, prefilled=4, wasted=0, depth=decoded + 4, children=4)


@every_config
@pytest.mark.parametrize("shadow", [False, True])
def test_usage_is_the_sum_of_all_calls(config: MHConfig, shadow: bool) -> None:
    for seed in SEEDS:
        recorded = record(config, seed, shadow=shadow)
        total = sum((answer.usage for answer in recorded.engine.answers), Usage())
        assert recorded.result.usage == total
        assert total.children == len(recorded.engine.calls)
        assert total.decoded == sum(len(answer.tokens) for answer in recorded.engine.answers)


# --- budgets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (Budget(100), None),
        (Budget(100, max_steps=6), None),
        (Budget(100, max_steps=5), "max_steps"),
        (Budget(60), None),
        (Budget(59), "max_total_tokens"),
        (Budget(59, max_steps=5), "max_steps"),
        (Budget(100, deadline=0.0), "deadline_ms"),
        (Budget(59, deadline=0.0), "max_total_tokens"),
        (Budget(100, deadline=float("inf")), None),
    ],
)
def test_which_limit_forbids_a_proposal(budget: Budget, expected: StoppedBy | None) -> None:
    assert budget.spent_by(steps=5, tokens=50, next_tokens=10) == expected


@every_config
def test_max_steps_cuts_the_chain_off_and_keeps_the_answer_whole(config: MHConfig) -> None:
    for seed, limit in itertools.product(SEEDS, (1, 2, 3, 5, 8)):
        whole = unlimited(config, seed)
        result = record(config, seed, budget=Budget(10_000, max_steps=limit)).result
        assert is_whole(result)
        assert_scored(result.state.tokens, config)
        assert_begins_like(result, whole)
        assert len(result.infos) == min(limit, len(whole.infos))
        assert result.stopped_by == ("max_steps" if limit < len(whole.infos) else "completed")


@every_config
@pytest.mark.parametrize("draft", [None, (1, 2, 3), (2, 1, 0)], ids=["no draft", "unfinished", "finished"])
def test_a_cap_on_tokens_is_kept_and_leaves_the_answer_whole(config: MHConfig, draft: Prefix | None) -> None:
    for seed, cap in itertools.product(SEEDS, (12, 17, 25, 40, 70)):
        whole = unlimited(config, seed, draft)
        result = record(config, seed, budget=Budget(cap), draft=draft).result
        assert is_whole(result)
        assert_scored(result.state.tokens, config)
        assert_begins_like(result, whole)
        assert result.usage.decoded <= cap
        assert (result.stopped_by == "completed") == (len(result.infos) == len(whole.infos))
        assert result.stopped_by in ("completed", "max_total_tokens")


def test_a_cap_below_the_horizon_still_gives_a_whole_answer() -> None:
    for seed in SEEDS:
        result = record(CONFIGS["early rejection"], seed, budget=Budget(1)).result
        assert is_whole(result)
        assert result.infos == ()
        assert result.usage.decoded == len(result.state.tokens)
        assert result.stopped_by == "max_total_tokens"


class Clock:
    """Seconds since the epoch that advance by one with every look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@every_config
def test_a_deadline_at_any_moment_leaves_the_answer_whole(
    config: MHConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = set()
    for seed, moment in itertools.product(range(3), range(0, 80, 3)):
        whole = unlimited(config, seed)
        with monkeypatch.context() as patch:
            patch.setattr(clock, "now", Clock())
            recorded = record(config, seed, budget=Budget(10_000, deadline=float(moment)))
        result = recorded.result
        assert is_whole(result)
        assert_scored(result.state.tokens, config)
        assert_begins_like(result, whole)
        assert result.stopped_by == ("deadline_ms" if len(result.infos) < len(whole.infos) else "completed")
        assert result.usage.decoded == sum(len(answer.tokens) for answer in recorded.engine.answers)
        stops.add(result.stopped_by)
    assert stops == {"completed", "deadline_ms"}


def test_an_undecided_proposal_at_the_deadline_counts_as_waste(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIGS["early rejection"]
    wasted = 0
    for seed, moment in itertools.product(range(3), range(0, 80, 3)):
        with monkeypatch.context() as patch:
            patch.setattr(clock, "now", Clock())
            recorded = record(config, seed, budget=Budget(10_000, deadline=float(moment)))
        usage = recorded.result.usage
        decided = {id(info.proposal) for info in recorded.result.infos}
        undecided = [
            answer.tokens
            for call, answer in zip(recorded.engine.calls, recorded.engine.answers, strict=True)
            if call.deadline is not None and id(answer.tokens) not in decided
        ]
        assert usage.wasted == sum(len(tokens) for tokens in undecided)
        wasted += usage.wasted
    assert wasted > 0


def test_a_deadline_never_makes_up_a_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the bound of early rejection a proposal that the deadline stopped is undecided."""
    config = exact.make_config(LONG, alpha=1.0, law=ProposalLaw(2.0), block_size=12, steps=6)
    for moment in range(30, 60):
        with monkeypatch.context() as patch:
            patch.setattr(clock, "now", Clock())
            result = record(config, 2, budget=Budget(10_000, deadline=float(moment))).result
        assert_begins_like(result, unlimited(config, 2))
        assert not any(info.early_rejected for info in result.infos)


@every_config
def test_the_deadline_is_told_to_proposals_only(config: MHConfig) -> None:
    budget = Budget(10_000, deadline=float("inf"))
    recorded = record(config, 2, budget=budget)
    told = [call for call in recorded.engine.calls if call.deadline is not None]
    assert len(told) == len(recorded.result.infos)


def test_a_result_says_how_many_steps_the_last_stage_took() -> None:
    config = exact.make_config(LONG, block_size=4, steps=3)
    for seed in SEEDS:
        early = record(config, seed, budget=Budget(10_000, max_steps=2)).result
        assert early.last_stage_steps == 0
        assert is_whole(early)
        assert record(config, seed).result.last_stage_steps == 3


# --- drafts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", [ProposalLaw(1.3), ProposalLaw(1.3, top_k=2)])
def test_a_draft_is_scored_by_forced_decoding(law: ProposalLaw) -> None:
    config = exact.make_config(LONG, law=law, block_size=4, steps=0)
    for draft in [(1, 2, 3, 4, 0), (4, 3, 2, 1), (1,) * 12]:
        recorded = record(config, 3, draft=draft)
        scoring = recorded.engine.calls[0]
        assert (scoring.prefix, scoring.forced, scoring.horizon) == ((), draft, len(draft))
        assert recorded.engine.answers[0].tokens.ids == draft
        state, info = recorded.seen[0]
        assert info is None
        assert state.tokens.ids == draft
        assert state.finished == (draft[-1] == 0)
        assert state.stage == config.stages
        assert_scored(state.tokens, config)


def test_only_an_unfinished_draft_is_extended() -> None:
    config = exact.make_config(LONG, block_size=4, steps=0)
    assert record(config, 3, draft=(1, 2, 0)).result.state.tokens.ids == (1, 2, 0)
    assert record(config, 3, draft=(1,) * 12).result.state.tokens.ids == (1,) * 12
    extended = record(config, 3, draft=(1, 2))
    assert len(extended.engine.calls) == 2
    assert extended.engine.calls[1].prefix == (1, 2)
    assert extended.engine.calls[1].horizon == 12
    assert extended.result.state.tokens.ids[:2] == (1, 2)
    assert is_whole(extended.result)


def test_a_drafted_chain_steps_at_the_last_horizon_only() -> None:
    config = exact.make_config(LONG, block_size=4, steps=5)
    for seed in SEEDS:
        result = record(config, seed, draft=(1, 2, 0)).result
        assert [info.stage for info in result.infos] == [3] * 5
        assert result.last_stage_steps == 5


# --- observers ----------------------------------------------------------------------------------------


@every_config
@pytest.mark.parametrize("draft", [None, (1, 2, 3)], ids=["no draft", "draft"])
@pytest.mark.parametrize("limit", [None, 2], ids=["whole", "cut off"])
def test_an_observer_sees_every_state(config: MHConfig, draft: Prefix | None, limit: int | None) -> None:
    for seed in SEEDS:
        recorded = record(config, seed, draft=draft, budget=Budget(10_000, max_steps=limit))
        assert len(recorded.seen) == len(recorded.engine.calls)
        assert [info for _, info in recorded.seen if info is not None] == list(recorded.result.infos)
        assert recorded.seen[-1][0] is recorded.result.state
        for (before, _), (after, info) in itertools.pairwise(recorded.seen):
            _assert_follows(before, after, info)


def _assert_follows(before: ChainState, after: ChainState, info: Info | None) -> None:
    """One state leads to the next as the report says."""
    if info is None:
        assert after.tokens.ids[: len(before.tokens)] == before.tokens.ids
        assert len(after.tokens) > len(before.tokens)
        assert after.step == before.step
    elif info.accepted:
        assert after.tokens.ids == before.tokens.ids[: info.cut] + info.proposal.ids
        assert after.finished == info.proposal_finished
        assert after.step == before.step + 1
    else:
        assert after.tokens is before.tokens
        assert after.finished == before.finished
        assert after.step == before.step + 1


# --- cancellation and failure -------------------------------------------------------------------------


class StuckEngine(RecordingEngine):
    """Never answers from the given call on; knows whether it was cancelled."""

    def __init__(self, model: TabularModel, stuck_at: int) -> None:
        super().__init__(model)
        self._stuck_at = stuck_at
        self.stuck = asyncio.Event()
        self.cancelled = False

    async def generate(self, call: ContinuationCall) -> Continuation:
        if len(self.calls) < self._stuck_at:
            return await super().generate(call)
        self.stuck.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        raise AssertionError("unreachable")


@pytest.mark.parametrize("stuck_at", [0, 1, 3, 6])
async def test_cancelling_a_chain_cancels_its_call_and_keeps_what_there_is(stuck_at: int) -> None:
    config = exact.make_config(LONG, block_size=4, steps=5)
    engine = StuckEngine(LONG, stuck_at)
    seen: list[ChainState] = []
    chain = Chain(engine, config, Key(3), exact.AMPLE, lambda state, _: seen.append(state))
    task = asyncio.create_task(chain.run())
    await engine.stuck.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.cancelled
    result = chain.result("abort")
    assert result.stopped_by == "abort"
    assert result.state is (seen[-1] if seen else chain.state)
    assert len(seen) == stuck_at
    assert result.usage == sum((answer.usage for answer in engine.answers), Usage())
    assert asyncio.all_tasks() == {asyncio.current_task()}


class FailingEngine(RecordingEngine):
    """Fails at its third call."""

    async def generate(self, call: ContinuationCall) -> Continuation:
        if len(self.calls) == 2:
            raise HostError("the server went away")
        return await super().generate(call)


async def test_an_engine_error_reaches_the_caller_unchanged() -> None:
    chain = Chain(FailingEngine(LONG), CONFIGS["paper"], Key(1), exact.AMPLE)
    with pytest.raises(HostError, match="the server went away"):
        await chain.run()


class NeverDecided:
    """Stops a token behind every cut, and never says that a proposal is lost."""

    def __init__(self, model: TabularModel) -> None:
        self._engine, self.calls = TabularEngine(model), 0

    async def generate(self, call: ContinuationCall) -> Continuation:
        self.calls += 1
        assert self.calls < 200, "a proposal is resumed for ever"
        whole = await self._engine.generate(dataclasses.replace(call, rules=()))
        if not call.prefix or len(whole.tokens) < 2:
            return whole
        usage = Usage(decoded=9, wasted=8, children=1)
        return Continuation(whole.tokens.first(1), finished=False, cut_short=True, usage=usage)

    def share(self, wanted: int) -> int:
        return wanted


async def test_a_proposal_that_is_never_decided_ends_with_the_budget_of_tokens() -> None:
    """Without a deadline, too."""
    config = dataclasses.replace(CONFIGS["kappa above alpha"], block_size=LONG.horizon, steps=1000)
    engine = NeverDecided(LONG)
    result = await Chain(engine, config, Key(3), Budget(300)).run()
    assert result.stopped_by == "max_total_tokens"
    assert result.usage.decoded <= 300 + 9
    assert result.state.finished or len(result.state.tokens) == LONG.horizon
