"""Writes the problems of the built-in tasks: `python -m integration_tests.tasks.write`.

They are in the form of a user's own file, which is all that `sglang-power eval` knows of them. The cards
beside them are written by hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from integration_tests.arithmetic import problems as arithmetic_problems
from integration_tests.pivot.problems import Family, problems
from integration_tests.prose.facts import sample_fact

FOLDER: Final = Path(__file__).parent
SEED: Final = 20_261_130
COUNT: Final = 200
FACTS: Final = 60

PIVOT_ANSWER: Final = r"A(\d)"
FACT_ANSWER: Final = r"is (?:\\boxed\{)?([^.{}]+)\}?\."
"""What stands behind the last "is" of a reply, in a box or not."""

Line = dict[str, Any]


def pivot(family: Family) -> list[Line]:
    """Return held-out problems of the pivot model."""
    return [
        {
            "id": f"{family}{number}",
            "prompt": problem.text,
            "answer": str(problem.answer),
            "kind": "regex",
            "pattern": PIVOT_ANSWER,
        }
        for number, problem in enumerate(problems(family, COUNT, SEED))
    ]


def arithmetic() -> list[Line]:
    """Return held-out additions and multiplications of the arithmetic model."""
    return [
        {
            "id": f"arithmetic{number}",
            "prompt": problem.text,
            "answer": str(problem.answer),
            "kind": "regex",
            "pattern": arithmetic_problems.ANSWER_REGEX,
        }
        for number, problem in enumerate(arithmetic_problems.problems(COUNT, SEED))
    ]


def prose() -> list[Line]:
    """Return different questions about the prose model's world; it was taught the facts, not these texts."""
    rng = np.random.default_rng(SEED)
    facts: dict[str, str] = {}
    while len(facts) < FACTS:
        fact = sample_fact(rng)
        facts.setdefault(fact.question, fact.right)
    return [
        {
            "id": f"fact{number}",
            "prompt": question,
            "answer": right,
            "kind": "regex",
            "pattern": FACT_ANSWER,
        }
        for number, (question, right) in enumerate(facts.items())
    ]


TASKS: Final[Mapping[str, Callable[[], list[Line]]]] = {
    "pivot_q": lambda: pivot("Q"),
    "pivot_r": lambda: pivot("R"),
    "prose": prose,
    "arithmetic": arithmetic,
}


def text_of(name: str) -> str:
    """Return a task's file."""
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in TASKS[name]())


def main() -> None:
    """Write all files."""
    for name in TASKS:
        (FOLDER / f"{name}.jsonl").write_text(text_of(name), encoding="utf-8")


if __name__ == "__main__":
    main()
