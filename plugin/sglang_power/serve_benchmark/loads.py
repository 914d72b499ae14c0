"""How many ask at once: clients that wait for their answers, or arrivals that wait for nobody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from sglang_power.serve_benchmark.askers import Answer
from sglang_power.serve_benchmark.workloads import Task

LEAST: Final = 4
"""Answers that a cell asks for, however long they take."""

ARRIVAL_SEED: Final = 20_261_130

Ask = Callable[[Task, int], Awaitable[Answer]]
"""Asks for the answer to a task, by its number."""


@dataclass(frozen=True, slots=True)
class Timed:
    """One answer, and how long its client waited."""

    task: Task
    answer: Answer
    seconds: float


@dataclass(frozen=True, slots=True)
class Block:
    """The answers of a cell.

    Args:
        timed: by the number of their task.
        seconds: from the first question to the last answer.
    """

    timed: Sequence[Timed]
    seconds: float

    @property
    def answers_per_minute(self) -> float:
        """Return the throughput."""
        return 60.0 * len(self.timed) / self.seconds


class _Collected:
    """Takes the time of answers as they come."""

    def __init__(self, ask: Ask, done: Callable[[], object]) -> None:
        self._ask, self._done = ask, done
        self._timed: dict[int, Timed] = {}
        self._began = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Return the seconds since the beginning."""
        return time.perf_counter() - self._began

    async def take(self, number: int, task: Task, asked_at: float) -> None:
        """Ask, and note how long it took since `asked_at` of `elapsed`."""
        answer = await self._ask(task, number)
        self._timed[number] = Timed(task, answer, self.elapsed - asked_at)
        self._done()

    def block(self) -> Block:
        """Return what was collected."""
        return Block([self._timed[number] for number in sorted(self._timed)], self.elapsed)


async def closed(
    ask: Ask, tasks: Sequence[Task], clients: int, seconds: float, done: Callable[[], object]
) -> Block:
    """Let so many clients work through the tasks, each waiting for its answer.

    Args:
        ask: for one answer.
        tasks: asked in order, each once.
        clients: at once.
        seconds: after which no further task is begun; LEAST of them are, in any case.
        done: called after every answer.

    Raises:
        ExceptionGroup: of what asking raised; the other questions are cancelled.
    """
    collected, waiting = _Collected(ask, done), iter(enumerate(tasks))

    async def work() -> None:
        for number, task in waiting:
            if number >= LEAST and collected.elapsed > seconds:
                return
            await collected.take(number, task, collected.elapsed)

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(work())
    return collected.block()


async def open_loop(
    ask: Ask, tasks: Sequence[Task], per_minute: float, seconds: float, done: Callable[[], object]
) -> Block:
    """Ask at the times of a Poisson process, whether or not there were answers; the wait counts from then.

    Args:
        per_minute: arrivals.
        ask, tasks, seconds, done: as in `closed`.

    Raises:
        ExceptionGroup: of what asking raised; the other questions are cancelled.
    """
    gaps = np.random.default_rng(ARRIVAL_SEED).exponential(60.0 / per_minute, len(tasks))
    collected = _Collected(ask, done)
    async with asyncio.TaskGroup() as group:
        for number, (task, at) in enumerate(zip(tasks, np.cumsum(gaps).tolist(), strict=True)):
            if number >= LEAST and at > seconds:
                break
            await asyncio.sleep(at - collected.elapsed)
            group.create_task(collected.take(number, task, at))
    return collected.block()
