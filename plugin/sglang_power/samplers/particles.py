"""Drives particle runs over an Engine: all particles of all runs of a block are one fan-out.

Everything that shapes the law is frozen before the first token: how many runs there are, their particles,
ramp, scheme and threshold. A deadline or an abort leaves what there is. Knows neither request models, nor
SGLang, nor HTTP.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from sglang_power.algorithms import smc
from sglang_power.algorithms.engine import ContinuationCall, Engine
from sglang_power.algorithms.smc import Particle, RunState, SMCConfig
from sglang_power.errors import ChainAbortedError, ParticlesDiedError
from sglang_power.rng import Key, Purpose
from sglang_power.samplers.base import Observer
from sglang_power.samplers.budgets import Budget, StoppedBy, late
from sglang_power.samplers.tasks import gather_or_cancel
from sglang_power.samplers.tree import common_length
from sglang_power.types import Continuation, Tokens, Usage, in_parallel


@dataclass(frozen=True, slots=True)
class RunsResult:
    """Where the runs came to.

    Args:
        states: of each run.
        log_z: log Zhat of each; -inf where all of its particles are dead, NaN where it has not ended.
        current: the runs that were the current one, in order; of those that have ended.
        chosen: the run that gives the answer: the last of `current`, or where none has ended the first one.
        stopped_by: "completed", or what ended the runs, or kept some from being started.
    """

    states: tuple[RunState, ...]
    log_z: tuple[float, ...]
    current: tuple[int, ...]
    chosen: int
    stopped_by: StoppedBy


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer out of the runs.

    Args:
        tokens, finished: the sequence.
        stopped_by: as of the runs; "abort" where that kept it from being brought to its end.
    """

    tokens: Tokens
    finished: bool
    stopped_by: StoppedBy


class ParticleRuns:
    """The particle runs of one answer, side by side; `run` and then `drawn` (or `likeliest`) are its life.

    Args:
        engine: continues sequences of the request's prompt.
        config: the algorithm, the same for all runs.
        key: of the answer.
        budget: its tokens say how many runs there are: N*L each; one at least.
        observer: told of the tokens that all particles share, where there is a single run, and of progress.
        runs: K, how many are asked for.

    Attributes:
        usage: what they have cost so far.
    """

    def __init__(
        self,
        engine: Engine,
        config: SMCConfig,
        key: Key,
        budget: Budget,
        observer: Observer | None = None,
        *,
        runs: int = 1,
    ) -> None:
        self._engine, self._config, self._key, self._budget = engine, config, key, budget
        self._observer, self._asked = observer, runs
        affordable = budget.max_total_tokens // (config.particles * config.horizon)
        self._keys = smc.run_keys(key, runs)[: max(1, affordable)]
        self._states = [smc.initial_state(config) for _ in self._keys]
        self.usage = Usage()

    async def run(self, draft: tuple[int, ...] | None = None) -> RunsResult:
        """Advance all runs to their end, the first one conditional on a draft.

        Raises:
            ChainAbortedError: aborted before there was a token.
            ParticlesDiedError: no run has a living particle left.
        """
        try:
            if draft is not None:
                self._states[0] = smc.initial_state(self._config, await self._reference(draft))
            stopped_by = await self._advance()
        except ChainAbortedError:
            each = [one for run in range(len(self._states)) for one in self._candidates(run)]
            if not any(len(one.tokens) for one in each):
                raise
            stopped_by = "abort"
        if stopped_by == "completed" and len(self._keys) < self._asked:
            stopped_by = "max_total_tokens"
        return self._result(stopped_by)

    async def drawn(self, result: RunsResult) -> Answer:
        """Return a particle of the chosen run, drawn by its weight, at its end."""
        return await self._at_its_end(self._drawn(result.chosen), result.stopped_by)

    async def likeliest(self, result: RunsResult) -> Answer:
        """Return the particle of largest p of all runs, of those that have ended if there are any."""
        living = [one for state in result.states for one in state.particles if not one.dead]
        ended = [one for one in living if smc.is_whole(self._config, one)]
        best = max(ended, key=lambda one: one.log_p) if ended else self._drawn(result.chosen)
        return await self._at_its_end(best, result.stopped_by)

    # --- blocks ---

    async def _advance(self) -> StoppedBy:
        while live := [run for run, state in enumerate(self._states) if not smc.ended(self._config, state)]:
            parts = await self._block(live)
            if any(part.cut_short for answers in parts for part in answers.values()):
                for run, answers in zip(live, parts, strict=True):
                    self._states[run] = smc.advanced(self._config, self._states[run], answers)
                return late(self._budget.deadline)
            for run, answers in zip(live, parts, strict=True):
                self._states[run] = smc.absorbed(self._config, self._keys[run], self._states[run], answers)
            self._observe()
            if self._budget.expired() and not all(smc.ended(self._config, one) for one in self._states):
                return late(self._budget.deadline)
        return "completed"

    async def _block(self, live: Sequence[int]) -> list[dict[int, Continuation]]:
        """The answers to the calls of the next block of some runs, all of them at once: per run, by slot."""
        calls = [smc.calls(self._config, self._keys[run], self._states[run]) for run in live]
        deadline = self._budget.deadline
        flat = [dataclasses.replace(call, deadline=deadline) for each in calls for call in each.values()]
        answers = iter(await self._together(flat))
        return [{slot: next(answers) for slot in each} for each in calls]

    async def _together(self, calls: Sequence[ContinuationCall]) -> list[Continuation]:
        answers = await gather_or_cancel([self._engine.generate(call) for call in calls])
        self.usage += in_parallel(answer.usage for answer in answers)
        return answers

    async def _reference(self, draft: tuple[int, ...]) -> Continuation:
        """A draft with the statistics of its rows, brought to its end by q."""
        seed, law = self._key.child_seed(1, Purpose.PROPOSAL), self._config.law
        (scored,) = await self._together([ContinuationCall((), len(draft), law, seed, forced=draft)])
        whole = await self._continued(scored.tokens, scored.finished, seed)
        return smc.reference_of(whole.tokens, whole.finished)

    async def _continued(self, tokens: Tokens, finished: bool, seed: int) -> Continuation:
        """A sequence with what q gives it up to a stop or to the horizon."""
        if finished or len(tokens) == self._config.horizon:
            return smc.reference_of(tokens, finished)
        call = ContinuationCall(tokens.ids, self._config.horizon, self._config.law, seed)
        (rest,) = await self._together([call])
        return dataclasses.replace(rest, tokens=tokens + rest.tokens)

    def _observe(self) -> None:
        """Tell what nothing can change any more: dead particles never come back, copies only repeat."""
        if self._observer is None:
            return
        state, shared = self._states[0], Tokens.EMPTY
        living = [one.tokens for one in state.particles if not one.dead]
        if len(self._states) == 1 and living:
            shared = living[0].first(common_length(tokens.ids for tokens in living))
        progress = {"block": state.block, "runs": len(self._states), "particles": self._config.particles}
        lengths = [len(one.tokens) for each in self._states for one in each.particles]
        self._observer(shared, {**progress, "tokens": max(lengths)})

    # --- choice ---

    def _result(self, stopped_by: StoppedBy) -> RunsResult:
        config, states = self._config, self._states
        log_z = [smc.log_z(config, one) if smc.ended(config, one) else math.nan for one in states]
        known = [-math.inf if math.isnan(value) else value for value in log_z]
        current = smc.accepted_runs(self._key, known)
        chosen: int | None = current[-1]
        if known[current[-1]] == -math.inf:
            current = []
            chosen = next((run for run in range(len(states)) if self._candidates(run)), None)
        if chosen is None:
            raise self._died()
        return RunsResult(tuple(states), tuple(log_z), tuple(current), chosen, stopped_by)

    def _candidates(self, run: int) -> list[Particle]:
        """What may be the answer of a run: its living particles; before its end, of a draft the draft."""
        state = self._states[run]
        if state.reference is not None and not smc.ended(self._config, state):
            return [Particle().grown(state.reference.tokens, state.reference.finished)]
        return [one for one in state.particles if not one.dead]

    def _drawn(self, run: int) -> Particle:
        state = self._states[run]
        if state.reference is not None and not smc.ended(self._config, state):
            return self._candidates(run)[0]
        return state.particles[smc.drawn_slot(self._config, self._keys[run], state)]

    async def _at_its_end(self, particle: Particle, stopped_by: StoppedBy) -> Answer:
        """A particle whose run was cut off goes on by q, unless the request was aborted."""
        if stopped_by == "abort":
            return Answer(particle.tokens, particle.finished, stopped_by)
        try:
            seed = self._key.child_seed(0, Purpose.PROPOSAL)
            whole = await self._continued(particle.tokens, particle.finished, seed)
        except ChainAbortedError:
            return Answer(particle.tokens, particle.finished, "abort")
        return Answer(whole.tokens, whole.finished, stopped_by)

    def _died(self) -> ParticlesDiedError:
        partial = [one.tokens.ids for state in self._states for one in state.particles]
        longest = max(map(len, partial))
        return ParticlesDiedError(
            f"all {len(partial)} particles of {len(self._states)} run(s) have weights that are no numbers, "
            f"after {longest} token(s): the model's logits are none",
            partial,
        )
