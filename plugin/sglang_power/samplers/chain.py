"""Drives one pure Metropolis-Hastings chain over an Engine, under a budget.

The one place where the algorithm meets waiting: every engine call and every reward of a chain is awaited
here, or in `flights`, for the proposals that are generated ahead of their turn. Steps are decided one after
the other, in order. Knows neither SGLang nor HTTP.

A reward that fails, and whose policy is to do without, is out from then on: the rest of the run goes by
p^alpha alone, which makes its law approximate.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from sglang_power.algorithms import mh
from sglang_power.algorithms import tries as multiple_try
from sglang_power.algorithms.engine import ContinuationCall, Engine
from sglang_power.algorithms.mh import MHConfig
from sglang_power.algorithms.smc import SMCConfig
from sglang_power.algorithms.steps import ChainState, Done, Extend, Info, Propose, ScoreState
from sglang_power.errors import ChainAbortedError
from sglang_power.rng import Key
from sglang_power.samplers.budgets import Budget, StoppedBy, late
from sglang_power.samplers.flights import Flights
from sglang_power.samplers.particles import ParticleRuns
from sglang_power.samplers.tasks import gather_or_cancel
from sglang_power.types import Continuation, Tokens, Usage, in_parallel

ChainObserver = Callable[[ChainState, Info | None], None]
"""Called after every extension (Info is None) and every step."""

StateReward = Callable[[Sequence[int], bool], Awaitable[float | None]]
"""R of a whole answer, from its ids and whether they end with a stop; None: go on without the reward."""


@dataclass(slots=True)
class RejectionCheck:
    """Lost proposals that are generated to their end all the same, and how many would have been accepted.

    A diagnostic that costs what early rejection saves.
    """

    resumed: int = 0
    violations: int = 0


@dataclass(frozen=True, slots=True)
class ChainResult:
    """The last state, every step and what it cost.

    Args:
        last_stage_steps: how many of the steps the last stage took; these alone leave the target invariant,
            so an answer that had none of them follows another law, wherever it was when a limit came.
        rejection_check: what checking early rejection gave, where it was checked.
        prefetched: proposals that were launched before their turn.
        discarded: those of them that no step took.
        log_p_start: of the answer before the first step of its stage; None before there was one.
    """

    state: ChainState
    infos: tuple[Info, ...]
    usage: Usage
    stopped_by: StoppedBy
    last_stage_steps: int
    rejection_check: RejectionCheck | None = None
    prefetched: int = 0
    discarded: int = 0
    log_p_start: float | None = None


class Chain:
    """One chain in progress; `run` is the whole life of it.

    Args:
        engine: continues sequences of the request's prompt.
        config: the algorithm.
        key: the chain's random key.
        budget: when to stop early.
        observer: told of every state.
        reward: scores whole answers; needed if and only if the configuration has a tilt.
        rejection_check: counts wrong early rejections; None where nobody checks.
    """

    def __init__(
        self,
        engine: Engine,
        config: MHConfig,
        key: Key,
        budget: Budget,
        observer: ChainObserver | None = None,
        *,
        reward: StateReward | None = None,
        rejection_check: RejectionCheck | None = None,
    ) -> None:
        assert (reward is None) == (config.tilt is None)
        self._engine, self._config, self._key, self._budget = engine, config, key, budget
        self._observer, self._reward, self._check = observer, reward, rejection_check
        self._start_key = key.split(1, 2)
        if config.start is not None:  # its particles draw by keys of their own
            self._key = key.split(0, 2)
        self._flights = Flights(engine, budget.deadline)
        self._log_p_start: float | None = None
        self.state = mh.initial_state()
        self.infos: list[Info] = []
        self.usage = Usage()

    async def run(self, draft: tuple[int, ...] | None = None) -> ChainResult:
        """Run the schedule, or as much of it as the budget allows, from an optional draft."""
        try:
            return await self._run(draft)
        finally:
            self.usage += await self._flights.cancelled()

    async def _run(self, draft: tuple[int, ...] | None) -> ChainResult:
        if draft is not None:
            await self._force(draft)
        elif self._config.start is not None:
            await self._start(self._config.start)
        stopped_by = await self._run_schedule()
        self._flights.recall()
        self.usage += await self._flights.all_waste()
        await self._finish_answer()
        unscored = self._config.tilt_of(self.state) is not None and self.state.reward is None
        if unscored and not self._budget.expired():
            await self._score_state()
        return self.result(stopped_by)

    async def _run_schedule(self) -> StoppedBy:
        while not isinstance(action := mh.next_action(self._config, self._key, self.state), Done):
            if isinstance(action, Extend):
                self._set(mh.extended(self._config, self.state, await self._generate(action.call)))
                continue
            if isinstance(action, ScoreState):
                limit = await self._score_state()
            else:
                limit = await self._launch(action) or await self._step()
            if limit is not None:
                return limit
        return "completed"

    def result(self, stopped_by: StoppedBy) -> ChainResult:
        """What there is so far."""
        return ChainResult(
            self.state,
            tuple(self.infos),
            self.usage,
            stopped_by,
            sum(info.stage == self._config.stages for info in self.infos),
            self._check,
            self._flights.ahead,
            self._flights.discarded,
            self._log_p_start,
        )

    def _set(self, state: ChainState, info: Info | None = None) -> None:
        self.state = state
        if info is not None:
            self.infos.append(info)
        if self._observer is not None:
            self._observer(state, info)

    async def _generate(self, call: ContinuationCall) -> Continuation:
        continuation = await self._engine.generate(call)
        self.usage += continuation.usage
        return continuation

    def _landed(self, started: int, usage: Usage) -> None:
        """Count the cost of a call that was launched at some depth: it may have run beside others."""
        depth = max(self.usage.depth, started + usage.depth)
        self.usage = dataclasses.replace(self.usage + usage, depth=depth)

    async def _force(self, draft: tuple[int, ...]) -> None:
        config = self._config
        call = dataclasses.replace(mh.extension_call(config, self._key, self.state, len(draft)), forced=draft)
        scored = await self._generate(call)
        self._set(mh.drafted_state(config, scored.tokens, scored.finished))

    async def _start(self, config: SMCConfig) -> None:
        """Take the answer of one particle run as the state of the last stage.

        Raises:
            ChainAbortedError: aborted meanwhile; the state is what there was, if anything.
        """
        particles = ParticleRuns(self._engine, config, self._start_key, self._budget)
        try:
            answer = await particles.drawn(await particles.run())
        finally:
            self.usage += particles.usage
        self._set(mh.drafted_state(self._config, answer.tokens, answer.finished))
        if answer.stopped_by == "abort":
            raise ChainAbortedError("aborted while its particles grew")

    async def _score_state(self) -> StoppedBy | None:
        try:
            value = await self._rewarded(self.state.tokens, self.state.finished)
        except TimeoutError:
            return late(self._budget.deadline)
        self.state = dataclasses.replace(self.state, reward=value)
        return None

    async def _rewarded(self, tokens: Tokens, finished: bool) -> float | None:
        """R of a whole answer; None once the reward has been given up.

        Raises:
            TimeoutError: the deadline passed meanwhile.
        """
        assert self._reward is not None
        async with asyncio.timeout(self._budget.remaining()):
            value = await self._reward(tokens.ids, finished)
        if value is None:
            self.state = dataclasses.replace(self.state, untilted_at=self.state.step)
        return value

    async def _reward_of(self, proposal: Propose, continuation: Continuation) -> float | None:
        """R(y') of a whole proposal where it counts."""
        if continuation.cut_short or self._config.tilt_of(self.state) is None:
            return None
        tokens = self.state.tokens.first(proposal.cut) + continuation.tokens
        return await self._rewarded(tokens, continuation.finished)

    async def _launch(self, proposal: Propose) -> StoppedBy | None:
        """Start this step's proposal, and those of the next ones within the limits; what forbids this one."""
        flights = self._flights
        if proposal.step not in flights:
            limit = self._limit_before(proposal)
            if limit == "max_total_tokens" and flights.recalled:  # they may come to less than was reserved
                self.usage += await flights.all_waste()
                limit = self._limit_before(proposal)
            if limit is not None:
                return limit
            flights.launch(proposal, self.usage.depth)
        room = self._engine.share(self._config.prefetch) - len(flights.steps)
        steps = [step for step in mh.steps_ahead(self._config, self.state) if step not in flights]
        steps = steps[: max(room, 0)]
        for ahead in mh.proposals(self._config, self._key, self.state, steps):
            if self._limit_before(ahead) is not None:
                break
            flights.launch(ahead, self.usage.depth, ahead=True)
        return None

    def _limit_before(self, proposal: Propose) -> StoppedBy | None:
        """The limit that forbids this proposal; an answer at the horizon stays affordable after it."""
        to_horizon = self._config.horizon - self._config.stage_horizon(self.state.stage)
        worst = self._flights.longest + proposal.longest + to_horizon
        return self._budget.spent_by(steps=proposal.step, tokens=self.usage.decoded, next_tokens=worst)

    async def _step(self) -> StoppedBy | None:
        if self.state.stage_step == 0:
            self._log_p_start = float(self.state.tokens.log_p.sum())
        flight, tries = await self._flights.take(self.state.step)
        self._landed(flight.started, in_parallel(each.usage for each in tries))
        proposal = flight.proposal
        for number, each in enumerate(tries):
            while mh.undecided(self._config, self.state, proposal, each):
                if (limit := self._limit_within(proposal, each)) is not None:
                    return self._given_up(tries, limit)
                tries[number] = each = await self._resume(proposal.calls[number], each)
        try:
            state, info = await self._decided(proposal, tries)
        except TimeoutError:
            return self._given_up(tries, late(self._budget.deadline))
        # The check may have given the reward up, after the decision.
        self._set(dataclasses.replace(state, untilted_at=self.state.untilted_at), info)
        if info.accepted:
            self._flights.keep(mh.proposals(self._config, self._key, self.state, self._flights.steps))
        self.usage += self._flights.waste()
        return None

    async def _decided(self, proposal: Propose, tries: Sequence[Continuation]) -> tuple[ChainState, Info]:
        """Score what was proposed, and accept or reject it.

        Raises:
            TimeoutError: the deadline passed meanwhile.
        """
        rewards: list[float | None] = [None] * len(tries)
        if self._config.tilt_of(self.state) is not None:
            rewards = await gather_or_cancel([self._reward_of(proposal, each) for each in tries])
        if len(tries) > 1:
            return multiple_try.decide(self._config, self.state, proposal, tries, rewards)
        decided = mh.decide(self._config, self.state, proposal, tries[0], rewards[0])
        if self._check is not None and tries[0].cut_short:
            await self._check_rejection(self._check, proposal, tries[0])
        return decided

    def _limit_within(self, proposal: Propose, so_far: Continuation) -> StoppedBy | None:
        """The limit that forbids to go on with an undecided proposal, `_limit_before` having allowed it."""
        left = self._flights.longest + self._config.horizon - proposal.cut - len(so_far.tokens)
        limit = self._budget.spent_by(steps=self.state.step, tokens=self.usage.decoded, next_tokens=left)
        return late(self._budget.deadline) if self._budget.expired() else limit

    def _given_up(self, undecided: Sequence[Continuation], limit: StoppedBy) -> StoppedBy:
        self.usage += Usage(wasted=sum(len(each.tokens) for each in undecided))
        return limit

    async def _resume(self, call: ContinuationCall, so_far: Continuation) -> Continuation:
        """Generate a cut-short proposal on to its end."""
        rest = await self._generate(
            dataclasses.replace(call, prefix=call.prefix + so_far.tokens.ids, rules=())
        )
        return dataclasses.replace(rest, tokens=so_far.tokens + rest.tokens)

    async def _check_rejection(self, check: RejectionCheck, proposal: Propose, lost: Continuation) -> None:
        state, whole = self.state, await self._resume(proposal.call, lost)
        reward = await self._reward_of(proposal, whole)
        if self.state is not state:
            return  # the reward has just been given up: there is nothing to compare with
        check.resumed += 1
        _, info = mh.decide(self._config, state, proposal, whole, reward)
        check.violations += info.accepted

    async def _finish_answer(self) -> None:
        """Bring a state whose schedule was cut off to a stop or to the horizon."""
        if self.state.finished or len(self.state.tokens) == self._config.horizon:
            return
        call = mh.extension_call(self._config, self._key, self.state, self._config.horizon)
        continuation = await self._generate(call)
        self._set(
            dataclasses.replace(
                self.state,
                tokens=self.state.tokens + continuation.tokens,
                finished=continuation.finished,
                stage=self._config.stages,
            )
        )
