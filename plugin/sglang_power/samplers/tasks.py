"""Structured waiting for several coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any, TypeVar

from sglang_power.errors import ChainAbortedError

T = TypeVar("T")

SIBLING_FAILED = "a coroutine beside it failed"
"""The message of a cancellation that no client and no operator asked for."""


def check_cancelled() -> None:
    """Raise the cancellation of the running task that what it awaited has swallowed.

    Before Python 3.12, `asyncio.wait_for` (SGLang waits for rows with it) returns a result that comes in the
    same moment as a cancellation, which then is lost.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def unless_aborted(work: Awaitable[T]) -> T | ChainAbortedError:
    """The result, or the abort that ended it: what others had finished is still worth choosing from."""
    try:
        return await work
    except ChainAbortedError as error:
        return error


def finished_of(results: Sequence[T | ChainAbortedError]) -> dict[int, T]:
    """Those that were not aborted, by their place.

    Raises:
        ChainAbortedError: all of them were.
    """
    done = {i: result for i, result in enumerate(results) if not isinstance(result, ChainAbortedError)}
    aborts = [result for result in results if isinstance(result, ChainAbortedError)]
    if aborts and not done:
        raise aborts[0]
    return done


async def gather_or_cancel(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order; when one fails or the caller is cancelled, all have ended before it returns."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel(SIBLING_FAILED)
        await asyncio.gather(*tasks, return_exceptions=True)
