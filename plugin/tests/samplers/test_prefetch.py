"""Proposals generated ahead of their turn: the same chain, its cost, its depth, its budgets, its end.

Deterministic, bit for bit: for one seed the chain is the same with 1, 2, 8 and 32 proposals in flight. The
two negative controls of the design (deciding in order of arrival, keeping a proposal whose prefix has
changed) are rejected with p < 1e-6 by the G-test, at the sample size at which the running code passes it at
1e-3 / 4; seeds are fixed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence

import exact
import exact_tilt
import pytest
from early_rejection_cases import assert_same_tokens
from sglang_power import clock
from sglang_power.algorithms.cuts import CutLaw
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.algorithms.mh import MHConfig
from sglang_power.algorithms.steps import ChainState, Info, Propose
from sglang_power.engines.tabular import Prefix, TabularEngine, TabularModel
from sglang_power.errors import ChainAbortedError
from sglang_power.rng import Key
from sglang_power.samplers import chain as chain_module
from sglang_power.samplers.budgets import Budget
from sglang_power.samplers.chain import Chain, ChainResult, StateReward
from sglang_power.samplers.flights import Flight, Flights
from sglang_power.types import Continuation, ProposalLaw, Tokens, Usage

LONG = exact.random_model(3, vocab=5, horizon=12, stop_share=0.3)
SEEDS = range(3)
DEPTHS = (2, 8, 32)

CONFIGS: dict[str, MHConfig] = {
    "uniform": exact.make_config(LONG, block_size=4, steps=12),
    "early rejection": exact.make_config(LONG, block_size=4, steps=12, early_rejection=True),
    "early rejection, entropy, tau=1": exact.make_config(
        LONG, law=ProposalLaw(1.0), cut=exact.ENTROPY, block_size=6, steps=12, early_rejection=True
    ),
    "one stage, tau=1": exact.make_config(
        LONG, law=ProposalLaw(1.0), block_size=12, steps=24, early_rejection=True
    ),
    "paper": exact.make_config(LONG, block_size=4, steps=6, schedule="paper", early_rejection=True),
    "lookback": exact.make_config(LONG, block_size=4, steps=6, lookback_blocks=1, early_rejection=True),
}
SOME = ("uniform", "early rejection, entropy, tau=1", "lookback")
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
some_configs = pytest.mark.parametrize("config", [CONFIGS[name] for name in SOME], ids=SOME)


def ahead(config: MHConfig, count: int) -> MHConfig:
    return dataclasses.replace(config, prefetch=count)


def run(
    config: MHConfig, seed: int, budget: Budget = exact.AMPLE, *, draft: Prefix | None = None
) -> ChainResult:
    return exact.run_chain(LONG, config, Key(seed), draft=draft, budget=budget)


def assert_same_steps(some: ChainResult, whole: ChainResult) -> None:
    """Every step of the first chain is the other's; proposals that are lost may be longer or shorter."""
    for one, other in zip(some.infos, whole.infos, strict=False):
        for field in ("stage", "step", "cut", "current_ids", "log_u", "accepted"):
            assert getattr(one, field) == getattr(other, field)
        common = min(len(one.proposal), len(other.proposal))
        assert_same_tokens(one.proposal.first(common), other.proposal.first(common))
        if len(one.proposal) == len(other.proposal):
            assert one.terms == other.terms
            assert one.proposal_finished == other.proposal_finished


# --- the chain ----------------------------------------------------------------------------------------


@every_config
@pytest.mark.parametrize("count", DEPTHS)
def test_the_chain_is_the_one_that_makes_a_proposal_at_a_time(config: MHConfig, count: int) -> None:
    prefetched = discarded = 0
    for seed in SEEDS:
        alone, many = run(config, seed), run(ahead(config, count), seed)
        assert len(many.infos) == len(alone.infos)
        assert_same_steps(many, alone)
        assert_same_tokens(many.state.tokens, alone.state.tokens)
        assert dataclasses.replace(many.state, tokens=Tokens.EMPTY) == dataclasses.replace(
            alone.state, tokens=Tokens.EMPTY
        )
        assert many.stopped_by == alone.stopped_by == "completed"
        assert alone.prefetched == alone.discarded == alone.usage.wasted == 0
        prefetched, discarded = prefetched + many.prefetched, discarded + many.discarded
    assert prefetched > discarded
    assert discarded > 0 or count == 2 or config.cut == exact.ENTROPY


@pytest.mark.parametrize("count", DEPTHS)
@pytest.mark.parametrize("bound", [None, exact_tilt.UPPER_BOUND], ids=["unbounded", "bounded"])
def test_rewards_are_asked_for_in_the_order_of_the_steps(count: int, bound: float | None) -> None:
    config = dataclasses.replace(
        exact_tilt.tilted(CONFIGS["early rejection, entropy, tau=1"], upper_bound=bound), early_rejection=True
    )
    for seed in SEEDS:
        asked: dict[int, list[Prefix]] = {1: [], count: []}

        def counted(many: int, asked: dict[int, list[Prefix]] = asked) -> StateReward:
            async def scored(ids: Sequence[int], finished: bool) -> float | None:
                asked[many].append(tuple(ids))
                return await exact_tilt.scored(ids, finished)

            return scored

        alone, many = (
            exact.run_chains(LONG, ahead(config, k), [Key(seed)], reward=counted(k))[0] for k in (1, count)
        )
        assert_same_steps(many, alone)
        assert many.state.reward == alone.state.reward
        if bound is None:
            assert asked[count] == asked[1]


def test_proposals_that_a_stale_bound_stopped_are_resumed() -> None:
    """An acceptance may lower the bound under which a proposal was stopped: it then goes on from there."""
    config, resumed = ahead(CONFIGS["early rejection, entropy, tau=1"], 8), 0
    for seed in range(20):
        recorded = record(config, seed)
        proposals = {call.seed for call in recorded.calls if call.recall is not None}
        resumed += sum(call.recall is None and call.seed in proposals for call in recorded.calls)
        assert_same_steps(recorded.result, run(ahead(config, 1), seed))
    assert resumed > 0


# --- what is in flight --------------------------------------------------------------------------------


class Stepping:
    """Calls take a tick to start and one per token, as rows of a batch do; recalled ones end at the next.

    Attributes:
        now: ticks so far.
        calls, answers: in order of their starts, and of their ends.
        running, most: calls at work, and the largest number of them.
        starts: the tick at which each call began, and in which turn of the loop's work between two ticks.

    Args:
        places: calls that others leave room for, one moment after the other; the last one stays.
    """

    def __init__(self, model: TabularModel = LONG, places: Sequence[int] = (1000,)) -> None:
        self._engine = TabularEngine(model)
        self._places = list(places)
        self._due: asyncio.Event = asyncio.Event()
        self.now = self.running = self.most = 0
        self.calls: list[ContinuationCall] = []
        self.answers: list[Continuation] = []
        self.starts: list[int] = []

    async def generate(self, call: ContinuationCall) -> Continuation:
        self.calls.append(call)
        self.starts.append(self.now)
        whole = await self._engine.generate(call)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self._due.wait()
            for done in range(len(whole.tokens)):
                await self._due.wait()
                if call.recalled:
                    usage = Usage.of_call(done, prefilled=1)
                    whole = Continuation(whole.tokens.first(done), False, cut_short=True, usage=usage)
                    break
        finally:
            self.running -= 1
        self.answers.append(whole)
        return whole

    def share(self, wanted: int) -> int:
        places = self._places.pop(0) if len(self._places) > 1 else self._places[0]
        return max(1, min(wanted, places))

    async def tick(self) -> None:
        while True:
            for _ in range(12):  # all that the last tick has woken asks for its next call
                await asyncio.sleep(0)
            self.now += 1
            due, self._due = self._due, asyncio.Event()
            due.set()


@dataclasses.dataclass
class Recorded:
    """A finished chain with everything that was seen of it."""

    result: ChainResult
    engine: Stepping
    seen: list[tuple[ChainState, Info | None]]

    @property
    def calls(self) -> list[ContinuationCall]:
        return self.engine.calls


def record(
    config: MHConfig, seed: int, budget: Budget = exact.AMPLE, places: Sequence[int] = (1000,)
) -> Recorded:
    async def stepped() -> Recorded:
        engine, seen = Stepping(places=places), list[tuple[ChainState, Info | None]]()
        chain = Chain(engine, config, Key(seed), budget, lambda state, info: seen.append((state, info)))
        ticking = asyncio.create_task(engine.tick())
        try:
            return Recorded(await chain.run(), engine, seen)
        finally:
            ticking.cancel()

    return asyncio.run(stepped())


@every_config
@pytest.mark.parametrize("count", [1, 2, 8, 32])
def test_depth_is_the_time_where_launches_and_tokens_take_a_tick_each(config: MHConfig, count: int) -> None:
    for seed in SEEDS:
        recorded = record(ahead(config, count), seed)
        assert recorded.result.usage.depth == recorded.engine.now
        assert_same_steps(recorded.result, run(config, seed))


@some_configs
def test_more_in_flight_costs_tokens_and_saves_depth(config: MHConfig) -> None:
    depth, decoded = (
        {k: sum(getattr(record(ahead(config, k), seed).result.usage, name) for seed in SEEDS) for k in (1, 8)}
        for name in ("depth", "decoded")
    )
    assert depth[8] < 0.75 * depth[1]
    assert decoded[8] > decoded[1]


@some_configs
@pytest.mark.parametrize("places", [(1,), (2,), (8, 1, 3, 1, 8, 2)], ids=["one", "two", "changing"])
def test_a_crowded_server_has_fewer_in_flight_and_changes_no_chain(
    config: MHConfig, places: Sequence[int]
) -> None:
    for seed in SEEDS:
        recorded, free = record(ahead(config, 8), seed, places=places), record(ahead(config, 8), seed)
        assert_same_steps(recorded.result, run(config, seed))
        longer = recorded.result.usage.depth - free.result.usage.depth
        assert longer > 0 or (longer == 0 and len(places) > 1)
        assert (recorded.result.prefetched == 0) == (places == (1,))


@some_configs
@pytest.mark.parametrize("count", [1, 8])
def test_usage_is_the_sum_of_all_calls_and_what_nobody_took_is_wasted(config: MHConfig, count: int) -> None:
    for seed in SEEDS:
        recorded = record(ahead(config, count), seed)
        usage, result = recorded.result.usage, recorded.result
        total = sum((answer.usage for answer in recorded.engine.answers), Usage())
        assert dataclasses.replace(usage, depth=0, wasted=0) == dataclasses.replace(total, depth=0)
        taken = sum(len(info.proposal) for info in result.infos)
        assert usage.children == len(recorded.calls)
        grown = usage.decoded - usage.wasted - taken
        assert 0 < grown <= LONG.horizon, "what is left are the extensions"


@some_configs
@pytest.mark.parametrize("count", DEPTHS)
def test_so_many_are_in_flight_and_never_those_of_another_stage(config: MHConfig, count: int) -> None:
    for seed in SEEDS:
        recorded = record(ahead(config, count), seed)
        proposals = [call for call in recorded.calls if call.recall is not None]
        in_flight = min(count, config.steps)
        assert in_flight <= recorded.engine.most <= 2 * in_flight, "recalled ones run on to the next tick"
        horizons = {config.stage_horizon(info.stage) for info in recorded.result.infos}
        assert {call.horizon for call in proposals} == horizons
        for (state, info), (_, following) in itertools.pairwise(recorded.seen):
            assert info is None or following is None or following.step == info.step + 1
            assert state.step <= sum(info is not None for _, info in recorded.seen)


def test_what_can_start_at_once_starts_in_one_turn() -> None:
    recorded = record(ahead(CONFIGS["one stage, tau=1"], 8), 1)
    starts = [
        start
        for start, call in zip(recorded.engine.starts, recorded.calls, strict=True)
        if call.recall is not None
    ]
    assert starts[:8] == [starts[0]] * 8


# --- budgets ------------------------------------------------------------------------------------------


def is_whole(result: ChainResult) -> bool:
    ids = result.state.tokens.ids
    assert result.state.finished == LONG.ends(ids)
    return result.state.finished or len(ids) == LONG.horizon


@some_configs
@pytest.mark.parametrize("count", [2, 8])
def test_a_cap_on_tokens_holds_for_all_in_flight_together(config: MHConfig, count: int) -> None:
    for seed, cap in itertools.product(range(2), (12, 25, 40, 90, 200)):
        whole = run(config, seed)
        for result in (
            run(ahead(config, count), seed, Budget(cap)),
            record(ahead(config, count), seed, Budget(cap)).result,
        ):
            assert is_whole(result)
            assert_same_steps(result, whole)
            assert result.usage.decoded <= cap
            assert (result.stopped_by == "completed") == (len(result.infos) == len(whole.infos))
            assert result.stopped_by in ("completed", "max_total_tokens")


@some_configs
def test_nothing_is_launched_beyond_max_steps(config: MHConfig) -> None:
    for seed, limit in itertools.product(range(3), (1, 2, 5, 8)):
        whole = run(config, seed)
        recorded = record(ahead(config, 8), seed, Budget(10_000, max_steps=limit))
        assert_same_steps(recorded.result, whole)
        assert len(recorded.result.infos) == min(limit, len(whole.infos))
        assert is_whole(recorded.result)


class Clock:
    """Seconds since the epoch that advance by one with every look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@some_configs
def test_a_deadline_at_any_moment_leaves_the_answer_whole(
    config: MHConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = set()
    for seed, moment in itertools.product(range(2), range(0, 200, 23)):
        whole = run(config, seed)
        with monkeypatch.context() as patch:
            patch.setattr(clock, "now", Clock())
            result = run(ahead(config, 8), seed, Budget(10_000, deadline=float(moment)))
        assert is_whole(result)
        assert_same_steps(result, whole)
        assert result.stopped_by == ("deadline_ms" if len(result.infos) < len(whole.infos) else "completed")
        stops.add(result.stopped_by)
    assert "deadline_ms" in stops


# --- ends ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", [0, 3, 9, 20])
async def test_cancelling_a_chain_leaves_no_call(moment: int) -> None:
    engine = Stepping()
    chain = Chain(engine, ahead(CONFIGS["one stage, tau=1"], 8), Key(3), exact.AMPLE)
    ticking, running = asyncio.create_task(engine.tick()), asyncio.create_task(chain.run())
    while engine.now < moment:
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert engine.running == 0
    ticking.cancel()
    await asyncio.gather(ticking, return_exceptions=True)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert chain.result("abort").stopped_by == "abort"


class Aborting(Stepping):
    """The request is aborted at its twentieth call: all calls end."""

    async def generate(self, call: ContinuationCall) -> Continuation:
        if len(self.calls) >= 20:
            await self._due.wait()
            raise ChainAbortedError("gone", [])
        return await super().generate(call)


async def test_an_abort_with_several_in_flight_keeps_what_was_decided_and_leaves_no_call() -> None:
    engine = Aborting()
    chain = Chain(engine, ahead(CONFIGS["one stage, tau=1"], 8), Key(3), exact.AMPLE)
    ticking = asyncio.create_task(engine.tick())
    with pytest.raises(ChainAbortedError):
        await chain.run()
    assert engine.running == 0
    result = chain.result("abort")
    assert 0 < len(result.infos) < 24
    assert result.usage.decoded >= sum(len(answer.tokens) for answer in engine.answers[:8])
    ticking.cancel()
    await asyncio.gather(ticking, return_exceptions=True)
    assert asyncio.all_tasks() == {asyncio.current_task()}


# --- the law, and two mistakes ------------------------------------------------------------------------

CHAINS = 600
LEVEL, REJECTED = 1e-3 / 4, 1e-6


class FirstArrived(Flights):
    """A mistake: the proposal that ends first is decided first."""

    async def take(self, step: int) -> tuple[Flight, list[Continuation]]:
        flying = self._flying
        await asyncio.wait([task for flight in flying.values() for task in flight.tasks])
        first = min(flying, key=lambda s: (len(flying[s].tasks[0].result().tokens), s))
        one, other = flying[step], flying[first]
        flying[step], flying[first] = other, one
        one.proposal, other.proposal = (
            dataclasses.replace(flight.proposal, step=at) for flight, at in ((one, first), (other, step))
        )
        return await super().take(step)


class Stale(Flights):
    """A mistake: a proposal is kept although the tokens before it have changed."""

    def keep(self, proposals: Iterable[Propose]) -> None:
        for proposal in proposals:
            if self._flying[proposal.step].proposal.cut != proposal.cut:
                self._recall(proposal.step)


SHORT = exact.make_config(exact.NARROW, law=ProposalLaw(1.0), block_size=5, steps=6)


@functools.cache
def p_value(config: MHConfig, _: str = "right") -> float:
    sample = exact.answers(exact.run_chains(exact.NARROW, ahead(config, 6), exact.seeds(7_000_000, CHAINS)))
    return exact.g_test(sample, exact.chain_law(exact.NARROW, config))


@pytest.mark.parametrize("cut", exact.CUTS.values(), ids=list(exact.CUTS))
def test_prefetched_chains_follow_the_law_of_their_steps(cut: CutLaw) -> None:
    assert p_value(dataclasses.replace(SHORT, cut=cut, early_rejection=True)) > LEVEL


@pytest.mark.parametrize("wrong", [FirstArrived, Stale])
def test_control_another_choice_of_what_is_decided_is_rejected(
    wrong: type[Flights], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert p_value(SHORT) > LEVEL
    monkeypatch.setattr(chain_module, "Flights", wrong)
    assert p_value(SHORT, wrong.__name__) < REJECTED
