"""Drives trials of rejection sampling over an Engine, several side by side, under a deadline.

The answer is the accepted trial that is first in trial order. So nothing here may depend on which one ends
first, but for what is given up: once a trial is accepted, those behind it are cancelled. Knows neither SGLang
nor HTTP.

A reward that fails, and whose policy is to do without, is out from then on, which makes the law approximate.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sglang_power import clock
from sglang_power.algorithms import perfect
from sglang_power.algorithms.engine import ContinuationCall, Engine
from sglang_power.algorithms.perfect import Judged, PerfectConfig, Trial
from sglang_power.algorithms.tilt import Tilt
from sglang_power.errors import ChainAbortedError
from sglang_power.rng import Key, Purpose
from sglang_power.samplers.chain import RejectionCheck, StateReward
from sglang_power.samplers.tasks import SIBLING_FAILED
from sglang_power.types import LAUNCH_STEPS, Continuation, Tokens, Usage

Ended = tuple[Judged, Usage]


@dataclass(slots=True)
class _Started:
    """A trial at work.

    Args:
        index: its place in the order.
        clock: depth before it began.
        steps: that it took beside the others until it was cancelled; None where it was not.
    """

    index: int
    clock: int
    steps: int | None = None


class Trials:
    """The trials of one draw.

    Args:
        engine: continues the request's prompt.
        config: the algorithm.
        key: the draw's random key.
        deadline: seconds of `clock.now`, behind which no trial begins and each ends; None means no limit.
        reward: scores whole answers; needed if and only if the configuration has a tilt.
        observer: told of the number of trials that have ended.
        rejection_check: counts wrong early ends; None where nobody checks.

    Attributes:
        accepted: of the trials that ended, the accepted one that is first in order.
        best: of the others, the one of largest weight, an undecided one before all that are rejected.
        untilted: the reward was given up.
    """

    def __init__(
        self,
        engine: Engine,
        config: PerfectConfig,
        key: Key,
        deadline: float | None = None,
        *,
        reward: StateReward | None = None,
        observer: Callable[[int], None] | None = None,
        rejection_check: RejectionCheck | None = None,
    ) -> None:
        assert (reward is None) == (config.tilt is None)
        self._engine, self._config, self._key, self._deadline = engine, config, key, deadline
        self._reward, self._observer, self.check = reward, observer, rejection_check
        self.accepted: Judged | None = None
        self.best: Judged | None = None
        self.untilted = False
        self._spent, self._clock = Usage(), 0
        self._undecided: set[int] = set()
        self._weights: dict[int, float] = {}
        self._decoded: dict[int, int] = {}
        self._ends: dict[int, int] = {}
        self._running: dict[asyncio.Task[Ended], _Started] = {}
        self._cancelled: dict[asyncio.Task[Ended], _Started] = {}

    # --- what came of them ---

    @property
    def late(self) -> bool:
        """Whether the deadline left a trial undecided that might have been the answer."""
        first = min(self._undecided, default=None)
        return first is not None and (self.accepted is None or first < self.accepted.index)

    @property
    def log_weights(self) -> list[float]:
        """Nats; of the trials up to the answer, or of all that ended where none was accepted."""
        return [log_w for index, log_w in self._weights.items() if self._counts(index)]

    @property
    def usage(self) -> Usage:
        """What they cost; as deep as the trials up to the answer, which it had to wait for.

        Tokens behind the answer in trial order are wasted, and those of trials that were left undecided: no
        decision used them.
        """
        answer = self.best if self.accepted is None else self.accepted
        lost = {index for index in self._decoded if not self._counts(index)}
        lost |= self._undecided - {-1 if answer is None else answer.index}
        depth = max((end for index, end in self._ends.items() if self._counts(index)), default=0)
        return self._spent + Usage(wasted=sum(self._decoded[index] for index in lost), depth=depth)

    def _counts(self, index: int) -> bool:
        """Whether a trial is none of those behind the answer."""
        return self.accepted is None or index <= self.accepted.index

    # --- running them ---

    async def run(self, indices: range) -> None:
        """Run trials until the first accepted one in order is known, or all have ended, or time is up.

        Raises:
            ChainAbortedError: the request was aborted; those that had ended before count.
        """
        waiting = deque(indices)
        try:
            while self._fill(waiting):
                await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
                self._collect([task for task in self._running if task.done()])
                self._cancel(
                    task for task, started in self._running.items() if self._is_behind(started.index)
                )
        finally:
            self._cancel(self._running)
            await self._end()

    def _fill(self, waiting: deque[int]) -> bool:
        """Begin trials where at least half of the width is free; whether any runs that may be the answer.

        They begin in bunches, since every start of children holds up all rows of a server.
        """
        width = self._engine.share(self._config.width)
        free = width - len(self._running)
        over = self.accepted is not None or bool(self._undecided) or self._expired()
        if not over and (not self._running or 2 * free >= width):
            for _ in range(min(max(free, 0), len(waiting))):
                started = _Started(waiting.popleft(), self._clock)
                self._running[asyncio.ensure_future(self._one(started.index))] = started
        return bool(self._running)

    def _is_behind(self, index: int) -> bool:
        return not self._counts(index)

    def _collect(self, ended: Iterable[asyncio.Task[Ended]]) -> None:
        """Take in trials that have ended, the aborted ones last."""
        aborts = []
        for task in ended:
            started, error = self._running.pop(task), task.exception()
            if error is None:
                self._take(started, *task.result())
            elif isinstance(error, ChainAbortedError):
                aborts.append(error)
            else:
                raise error
        if aborts:
            raise aborts[0]

    def _take(self, started: _Started, judged: Judged, usage: Usage) -> None:
        self._ends[started.index] = started.clock + usage.depth
        self._clock = max(self._clock, self._ends[started.index])
        self._spent += dataclasses.replace(usage, depth=0)
        self._decoded[started.index] = len(judged.tokens)
        self._weights[started.index] = judged.log_w
        if judged.verdict == "undecided":
            self._undecided.add(started.index)
        if judged.verdict == "accepted":
            if self.accepted is None or judged.index < self.accepted.index:
                self.accepted = judged
        elif self.best is None or _promise(judged) > _promise(self.best):
            self.best = judged
        if self._observer is not None:
            self._observer(len(self._weights))

    def _cancel(self, tasks: Iterable[asyncio.Task[Ended]]) -> None:
        for task in list(tasks):
            started = self._running.pop(task)
            started.steps = self._clock - started.clock
            self._cancelled[task] = started
            task.cancel(SIBLING_FAILED)

    async def _end(self) -> None:
        """Wait for the cancelled trials, and count them.

        What a cancelled call had decoded nobody is told. All rows of a batch advance together, so it is as
        many tokens as the others took steps meanwhile, but for its launch.
        """
        results = await asyncio.gather(*self._cancelled, return_exceptions=True)
        for started, result in zip(self._cancelled.values(), results, strict=True):
            decoded = min(max((started.steps or 0) - LAUNCH_STEPS, 0), self._config.horizon)
            spent = Usage.of_call(decoded)
            if not isinstance(result, BaseException):
                spent = result[1]
            self._spent += dataclasses.replace(spent, wasted=spent.decoded, depth=0)
        self._cancelled = {}

    # --- one of them ---

    async def _one(self, index: int) -> Ended:
        drawn = perfect.trial(self._config, self._key, index)
        so_far = await self._engine.generate(dataclasses.replace(drawn.call, deadline=self._deadline))
        while so_far.cut_short and perfect.survives(drawn, so_far.tokens) and not self._expired():
            so_far = await self._resumed(drawn, so_far)
        if self.check is not None and so_far.cut_short and not perfect.survives(drawn, so_far.tokens):
            so_far = dataclasses.replace(so_far, usage=await self._checked(self.check, drawn, so_far))
        try:
            reward = await self._reward_of(drawn, so_far)
        except TimeoutError:
            so_far, reward = dataclasses.replace(so_far, cut_short=True), None
        return perfect.judged(drawn, so_far, self._tilt, reward), so_far.usage

    @property
    def _tilt(self) -> Tilt | None:
        return None if self.untilted else self._config.tilt

    async def _resumed(self, drawn: Trial, so_far: Continuation) -> Continuation:
        """The trial, generated on to its end."""
        rest = await self._engine.generate(
            dataclasses.replace(drawn.call, prefix=so_far.tokens.ids, rules=())
        )
        return dataclasses.replace(rest, tokens=so_far.tokens + rest.tokens, usage=so_far.usage + rest.usage)

    async def _checked(self, check: RejectionCheck, drawn: Trial, lost: Continuation) -> Usage:
        whole = await self._resumed(drawn, lost)
        check.resumed += 1
        check.violations += perfect.survives(drawn, whole.tokens)
        return whole.usage

    async def _reward_of(self, drawn: Trial, so_far: Continuation) -> float | None:
        """R of a trial that is whole and not rejected without it, where it counts.

        Raises:
            TimeoutError: the deadline passed meanwhile.
        """
        survivor = not so_far.cut_short and perfect.survives(drawn, so_far.tokens)
        if self._tilt is None or self._reward is None or not survivor:
            return None
        left = None if self._deadline is None else max(0.0, self._deadline - clock.now())
        async with asyncio.timeout(left):
            value = await self._reward(so_far.tokens.ids, so_far.finished)
        self.untilted |= value is None
        return value

    def _expired(self) -> bool:
        return self._deadline is not None and clock.now() > self._deadline

    # --- an answer where none was accepted ---

    async def completed(self) -> tuple[Tokens, bool]:
        """Return `best` brought to its end with q, a plain draw where there is none; and whether it stops."""
        best = self.best
        tokens, finished = (Tokens.EMPTY, False) if best is None else (best.tokens, best.finished)
        if finished or len(tokens) >= self._config.horizon:
            return tokens, finished
        index = 0 if best is None else best.index
        seed = self._key.child_seed(index, Purpose.EXTENSION)
        call = ContinuationCall(tokens.ids, self._config.horizon, self._config.law, seed)
        rest = await self._engine.generate(call)
        self._spent += rest.usage
        return tokens + rest.tokens, rest.finished


def _promise(judged: Judged) -> tuple[bool, float]:
    """What trials that were not accepted are compared by."""
    return judged.verdict == "undecided", judged.log_w
