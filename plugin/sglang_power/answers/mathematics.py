"""Equality of mathematical answers by math-verify, in processes that can be killed.

Simplifying what a model wrote may take for ever, fill the memory or end the process, so each comparison runs
in a spawned worker with a time limit and a memory limit; whatever goes wrong there is an UNDECIDED verdict
with its reason, for that comparison alone. The extra `math` has the libraries.

A spawned worker imports the main module of the server again, so there are few, and they are kept.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import logging
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang_power.answers.equivalence import (
    DIFFERENT,
    EQUAL,
    ComparisonOutcome,
    Verdict,
    normal_form,
    undecided,
)
from sglang_power.errors import UnsupportedError
from sglang_power.extensions import install_extra

if TYPE_CHECKING:
    from pebble import ProcessPool

MODULES = ("math_verify", "pebble")

MEMORY = 1 << 30
"""Bytes that a worker may take beyond what its imports took."""

_WORDS = re.compile(r"[^\W\d_]{3,}(?:[\s'-]+[^\W\d_]+)*")
"""Plain words; math-verify would read them as products of variables: Paris = Pairs."""

WorkerReport = tuple[str, str]
"""An Outcome's value and the reason, as a worker sends them."""

Comparison = Callable[[str, str], WorkerReport]


class Mathematics:
    """Answers are the same if math-verify says so (its defaults: floats to 6 decimals; not transitive).

    Plain words are compared by their normal form.

    Args:
        seconds: time limit of one comparison.
        workers: processes, started at the first comparison.
        compare: what runs in them; a function at the top level of a module.
    """

    def __init__(self, seconds: float = 5.0, workers: int = 2, compare: Comparison | None = None) -> None:
        self._seconds, self._workers = seconds, workers
        self._compare = compare or compare_formulas
        self._pool: ProcessPool | None = None
        self._running: set[Future[WorkerReport]] = set()

    async def same(self, a: str, b: str) -> Verdict:
        """Compare two answers by math-verify, or by their normal form where both are plain words.

        Raises:
            UnsupportedError: the extra is not installed.
        """
        if a == b:
            return EQUAL
        if _WORDS.fullmatch(a.strip()) or _WORDS.fullmatch(b.strip()):
            return EQUAL if await asyncio.to_thread(_same_words, a, b) else DIFFERENT
        return await self._run(self._compare, a, b)

    async def unreadable(self, answer: str) -> str | None:
        """Why an answer cannot be read as mathematics, or not in time; None for plain words.

        Raises: as `same`.
        """
        if _WORDS.fullmatch(answer.strip()):
            return None
        verdict = await self._run(read_formula, answer)
        return verdict.reason if verdict.outcome is ComparisonOutcome.UNDECIDED else None

    async def _run(self, work: Callable[..., WorkerReport], *answers: str) -> Verdict:
        pool = self._ready()
        from pebble import ProcessExpired

        task = pool.schedule(report, args=(work, *answers), timeout=self._seconds)
        self._running.add(task)
        try:
            outcome, reason = await asyncio.wrap_future(task)
        except TimeoutError:
            return undecided(f"stopped after {self._seconds:g} seconds")
        except ProcessExpired as error:
            return undecided(f"the comparison ended its process, exit code {error.exitcode}")
        except BrokenProcessPool as error:
            self.close()
            return undecided(f"the processes ended: {error}")
        finally:
            self._running.discard(task)
        return Verdict(ComparisonOutcome(outcome), reason)

    def _ready(self) -> ProcessPool:
        """The pool; a new one where there is none, or where it broke between two comparisons."""
        if self._pool is not None and not self._pool.active:
            self.close()
        if self._pool is None:
            require_extra()
            from pebble import ProcessPool

            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPool(max_workers=self._workers, initializer=prepare_worker, context=spawn)
        return self._pool

    def close(self) -> None:
        """End the processes; comparisons that wait are undecided, a later one starts new processes."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        pool.stop()  # type: ignore[no-untyped-call]
        pool.join()
        for task in self._running:  # pebble leaves them waiting
            if not task.done():
                task.set_exception(BrokenProcessPool("closed"))


def _same_words(a: str, b: str) -> bool:
    return normal_form(a) == normal_form(b)


def require_extra() -> None:
    """Check that the extra `math` is installed.

    Raises:
        UnsupportedError: math-verify or pebble is missing.
    """
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        problem = f"{' and '.join(missing)} not installed on this server"
        raise UnsupportedError("equivalence", "math", problem, install_extra("math"))


# --- in the workers -----------------------------------------------------------------------------------


def prepare_worker() -> None:
    """Import what comparisons need, so that no time limit counts it, and limit the memory."""
    import resource

    import math_verify  # noqa: F401

    # With its own time limits off, math-verify warns that they are off.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, hard))


def report(work: Callable[..., WorkerReport], *answers: str) -> WorkerReport:
    """Read or compare; an error becomes the reason, since not every exception survives the way back."""
    try:
        return work(*answers)
    except Exception as error:  # noqa: BLE001  (see above)
        return ComparisonOutcome.UNDECIDED.value, f"{type(error).__name__}: {error}"[:200]


def read_formula(text: str) -> WorkerReport:
    """Parse by math-verify: as equal to itself as any formula, or undecided because it is none."""
    if _parsed(text):
        return ComparisonOutcome.EQUAL.value, ""
    return ComparisonOutcome.UNDECIDED.value, f"{text!r:.80} is not read as mathematics"


def compare_formulas(a: str, b: str) -> WorkerReport:
    """Parse and compare by math-verify, `a` in the place of the reference."""
    from math_verify import verify

    for text in (a, b):
        if not _parsed(text):
            return read_formula(text)
    equal = verify(_parsed(a), _parsed(b), timeout_seconds=None, raise_on_error=True)
    return (ComparisonOutcome.EQUAL if equal else ComparisonOutcome.DIFFERENT).value, ""


@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> list[Any]:
    """math-verify reads formulas in an environment; bare ones lose all but a number."""
    from math_verify import parse

    boxed = text if "\\boxed" in text else f"\\boxed{{{text}}}"
    return list(parse(boxed, fallback_mode="no_fallback", parsing_timeout=0, raise_on_error=True))
