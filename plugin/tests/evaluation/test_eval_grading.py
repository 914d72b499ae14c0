"""Verdicts on answers, kind by kind, and what becomes of graders that fail. Error rate 0."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from sglang_power.answers.mathematics import Mathematics, WorkerReport
from sglang_power.evaluation.grading import Grade, Grader, class_of, program_of
from sglang_power.evaluation.items import Item
from sglang_power.evaluation.sandbox import Limits


def item(kind: str, gold: str, **fields: object) -> Item:
    return Item.model_validate({"id": "i", "question": "q", "gold": gold, "kind": kind, **fields})


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    one = Grader(Limits(seconds=5.0))
    yield one
    one.close()


CASES = [
    ("number", "1,005", "so 3 + 4 and 1005.0 in all", "1005", True),
    ("number", "0.5", "half of it is 1/2", "1/2", True),
    ("number", "5", "It is 6.", "6", False),
    ("number", "5", "nobody knows", None, False),
    ("choice", "B", "(A) looks right, but the answer is (B).", "B", True),
    ("choice", "B", "The answer is (C).", "C", False),
    ("choice", "B", "The answer is (E).", None, False),
    ("text", "Paris", " 'paris.' ", "'paris.'", True),
    ("text", "Paris", "It is Paris", "It is Paris", False),
    ("math", "\\frac{1}{2}", "thus \\boxed{0.5}", "0.5", True),
    ("math", "x^2-1", "thus $\\boxed{(x-1)(x+1)}$", "(x-1)(x+1)", True),
    ("math", "70", "so it is 70.", "70", True),
    ("math", "70", "so it is \\boxed{71}", "71", False),
]


@pytest.mark.parametrize(("kind", "gold", "text", "value", "correct"), CASES)
async def test_verdicts(
    grader: Grader, kind: str, gold: str, text: str, value: str | None, correct: bool
) -> None:
    grade = await grader.grade(item(kind, gold), text)
    assert (grade.value, grade.correct) == (value, correct)


async def test_a_pattern_finds_the_answer(grader: Grader) -> None:
    asked = item("regex", "7", pattern=r"A(\d)")
    assert await grader.grade(asked, "A1 A7.") == Grade("7", True)
    assert await grader.grade(asked, "7") == Grade(None, False)


async def test_a_pattern_that_takes_too_long_is_given_up(grader: Grader) -> None:
    asked = item("regex", "7", pattern=r"(?:a|a|aa)+b")
    grade = await grader.grade(asked, "a" * 100_000)
    assert (grade.value, grade.correct) == (None, None)
    assert "searched for" in grade.reason


# --- code ---

FUNCTION = "import math\n\n\ndef twice(x):\n"
TESTS = "def check(f):\n    assert f(2) == 4\n\ncheck(twice)\n"
ANSWERS = {
    "the rest of the function": ("    return 2 * x\n", True),
    "a wrong rest": ("    return x\n", False),
    "a block with all of it": ("Here:\n```python\ndef twice(x):\n    return 2 * x\n```\nDone.", True),
    "a block that needs the imports": ("```python\ndef twice(x):\n    return math.ldexp(x, 1)\n```", True),
    "the block that defines it": (
        "```python\nprint(twice(2))\n```\n```\ndef twice(x):\n    return 2 * x\n```\n```py\nprint(1)\n```",
        True,
    ),
    "a block with the rest": ("```python\n    return 2 * x\n```", True),
    "an open block": ("```python\ndef twice(x):\n    return 2 * x\n", True),
    "words": ("I cannot.", False),
    "no end": ("    while True: pass\n", False),
    "an early end": ("    import sys; sys.exit(0)\n", False),
}


@pytest.mark.parametrize(("text", "correct"), ANSWERS.values(), ids=list(ANSWERS))
async def test_code_is_run(text: str, correct: bool) -> None:
    grader = Grader(Limits(seconds=2.0))
    asked = item("code", TESTS, question=FUNCTION, entry_point="twice")
    grade = await grader.grade(asked, text)
    assert grade.correct is correct, grade
    assert (grade.reason == "") is correct
    assert grader.networks <= {"network namespace", "audit hook"}
    assert grader.networks


def test_code_of_a_users_own_is_followed_by_its_tests() -> None:
    assert program_of(item("code", "assert f() == 1"), "def f(): return 1") == (
        "def f(): return 1\n\nassert f() == 1\n"
    )


# --- graders that fail ---


def stuck(a: str, b: str) -> WorkerReport:  # noqa: ARG001
    """A comparison without an end; runs in another process."""
    time.sleep(600.0)
    raise AssertionError


def dying(a: str, b: str) -> WorkerReport:  # noqa: ARG001
    """A comparison that ends its process."""
    import os

    os._exit(3)


@pytest.mark.parametrize(
    ("compare", "reason"), [(stuck, "stopped after 0.5 seconds"), (dying, "ended its process, exit code")]
)
async def test_a_comparison_that_fails_is_said_of_one_answer(compare: object, reason: str) -> None:
    mathematics = Mathematics(seconds=0.5, workers=1, compare=compare)  # type: ignore[arg-type]
    grader = Grader(mathematics=mathematics)
    try:
        grade = await grader.grade(item("math", "x^2"), "\\boxed{x^3}")
        assert (grade.value, grade.correct) == ("x^3", None)
        assert reason in grade.reason
        assert await grader.grade(item("number", "5"), "5") == Grade("5", True)
    finally:
        grader.close()


async def test_a_grader_that_raises_is_said_of_one_answer(
    grader: Grader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sglang_power.evaluation.grading.extract", lambda *_: (_ for _ in ()).throw(ZeroDivisionError("oh"))
    )
    assert await grader.grade(item("number", "5"), "5") == Grade(None, None, "ZeroDivisionError: oh")


def test_classes_of_equal_answers() -> None:
    assert class_of("number", "0.50") == class_of("number", "1/2") != class_of("number", "0.51")
    assert class_of("choice", "b") == class_of("choice", "(B)")
    assert class_of("text", "Paris.") == class_of("text", "paris")
    assert class_of("number", "nothing") == "nothing"
