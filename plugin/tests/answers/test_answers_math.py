"""Mathematics in processes: what math-verify decides, and what hangs, crashes or fills the memory there.

Deterministic but for time limits, which only tasks that never end reach. Error rate 0.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sglang_power.answers import EQUAL, ComparisonOutcome, Unreadable, Verdict, build_classes, equivalence
from sglang_power.answers.mathematics import Mathematics, WorkerReport
from sglang_power.errors import UnsupportedError

GENEROUS = 60.0
"""Seconds that no task of these tests takes."""

SHORT = 1.5
"""Seconds that a task takes only if it never ends, on a busy machine too."""


@pytest.fixture(scope="module")
def mathematics() -> Iterator[Mathematics]:
    relation = Mathematics(seconds=GENEROUS, workers=1)
    yield relation
    relation.close()


def misbehave(a: str, b: str) -> WorkerReport:
    """A comparison that does what its first answer says. Runs in a worker."""
    match a:
        case "hang()":
            time.sleep(10 * GENEROUS)
        case "begin()":
            Path(b).touch()
            time.sleep(10 * GENEROUS)
        case "spin()":
            while True:
                pass
        case "crash()":
            os._exit(3)
        case "die()":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raise()":
            raise ValueError(b)
        case "fill()":
            bytearray(8 << 30)
        case "where()":
            return ComparisonOutcome.UNDECIDED.value, str(os.getpid())
    return ComparisonOutcome.EQUAL.value, ""


@pytest.fixture(scope="module")
def patient() -> Iterator[Mathematics]:
    """Runs `misbehave` with a short limit, in two workers."""
    relation = Mathematics(seconds=SHORT, workers=2, compare=misbehave)
    yield relation
    relation.close()


ROWS = [
    ("\\frac{1}{2}", "0.5", "equal"),
    ("1/2", "50\\%", "equal"),
    ("x+1", "1+x", "equal"),
    ("2\\sqrt{3}", "\\sqrt{12}", "equal"),
    ("\\{1,2\\}", "\\{2,1\\}", "equal"),
    ("(x+1)^2", "x^2+2x+1", "equal"),
    ("x < 3", "3 > x", "equal"),
    ("\\boxed{5}", "$5$", "equal"),
    ("1,234", "1234", "equal"),
    ("1", "2", "different"),
    ("[0,1)", "(0,1]", "different"),
    ("x", "y", "different"),
    ("\\sqrt{2}", "1.41", "different"),
    ("}{", "5", "undecided"),
    ("", "5", "undecided"),
]


@pytest.mark.parametrize(("a", "b", "outcome"), ROWS)
async def test_math_verify_decides(mathematics: Mathematics, a: str, b: str, outcome: str) -> None:
    for pair in ((a, b), (b, a)):
        assert (await mathematics.same(*pair)).outcome.value == outcome


async def test_what_is_not_read_is_named(mathematics: Mathematics) -> None:
    assert (await mathematics.same("5", "}{")).reason == "'}{' is not read as mathematics"


async def test_formulas_that_cannot_be_read_win_nothing(mathematics: Mathematics) -> None:
    classes = await build_classes(["}{", "1/2", "}{", "0.5", "}{", "Paris"], mathematics)
    assert [one.members for one in classes.classes] == [(0,), (1, 3), (2,), (4,), (5,)]
    assert [one.value for one in classes.classes] == [None, "1/2", None, None, "Paris"]
    reason = "'}{' is not read as mathematics"
    assert classes.unreadable == tuple(Unreadable(sample, reason) for sample in (0, 2, 4))
    assert classes.undecided == ()


async def test_a_formula_that_cannot_be_compared_in_time_can_be_read(mathematics: Mathematics) -> None:
    assert await mathematics.unreadable("9^{9^{9^{9}}}") is None


async def test_words_are_no_products_of_variables() -> None:
    unused = Mathematics()
    for a, b in (("Paris", "Pairs"), ("Paris", "x+1"), ("Amy", "May")):
        assert (await unused.same(a, b)).outcome is ComparisonOutcome.DIFFERENT
    assert await unused.same("Paris", " paris.") == await unused.same("}{", "}{") == EQUAL
    assert await unused.unreadable("Paris") is None
    assert unused._pool is None


async def test_hanging_comparisons_are_killed_and_others_survive(patient: Mathematics) -> None:
    tasks = [("hang()", "0"), ("1", "2"), ("spin()", "3"), ("4", "5"), ("6", "7")]
    verdicts = await asyncio.gather(*(patient.same(a, b) for a, b in tasks))
    stopped = Verdict(ComparisonOutcome.UNDECIDED, f"stopped after {SHORT:g} seconds")
    assert verdicts == [stopped, EQUAL, stopped, EQUAL, EQUAL]


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ("crash()", "the comparison ended its process, exit code 3"),
        ("die()", "the comparison ended its process, exit code -9"),
        ("raise()", "ValueError: it"),
        ("fill()", "MemoryError: "),
    ],
)
async def test_other_ends_are_reasons_too(patient: Mathematics, task: str, reason: str) -> None:
    assert await patient.same(task, "it") == Verdict(ComparisonOutcome.UNDECIDED, reason)
    assert await patient.same("a", "b") == EQUAL


async def test_a_formula_that_hangs_is_killed() -> None:
    relation = Mathematics(seconds=0.5, workers=1)
    try:
        assert (await relation.same("9^{9^{9^{9}}}", "1")).reason == "stopped after 0.5 seconds"
        assert relation._pool is not None
    finally:
        relation.close()


async def test_workers_that_died_while_idle_are_replaced(patient: Mathematics) -> None:
    worker = int((await patient.same("where()", "")).reason)
    os.kill(worker, signal.SIGKILL)
    async with asyncio.timeout(GENEROUS):
        while patient._pool is not None and patient._pool.active:
            await asyncio.sleep(0.02)
    assert await patient.same("a", "b") == EQUAL


async def test_closing_decides_nothing_and_a_later_comparison_starts_again() -> None:
    relation = Mathematics(seconds=GENEROUS, workers=1, compare=misbehave)
    try:
        assert await relation.same("0", "1") == EQUAL
        waiting = asyncio.create_task(relation.same("hang()", "0"))
        queued = asyncio.create_task(relation.same("1", "2"))
        await asyncio.sleep(0.2)
        relation.close()
        closed = Verdict(ComparisonOutcome.UNDECIDED, "the processes ended: closed")
        assert [await waiting, await queued] == [closed, closed]
        assert await relation.same("1", "2") == EQUAL
    finally:
        relation.close()


async def test_a_cancelled_comparison_frees_its_worker(tmp_path: Path) -> None:
    began = tmp_path / "began"
    relation = Mathematics(seconds=GENEROUS, workers=1, compare=misbehave)
    try:
        assert await relation.same("0", "1") == EQUAL
        waiting = asyncio.create_task(relation.same("begin()", str(began)))
        while not began.exists():
            await asyncio.sleep(0.02)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await relation.same("1", "2") == EQUAL
        assert not relation._running
    finally:
        relation.close()


@pytest.mark.parametrize("missing", ["math_verify", "pebble"])
async def test_without_the_extra_the_request_is_refused(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else name)
    with pytest.raises(UnsupportedError, match=f"{missing} not installed.*'\\.\\[math\\]'") as caught:
        equivalence("math")
    assert caught.value.field == "equivalence"
    with pytest.raises(UnsupportedError):
        await Mathematics().same("1", "2")
