"""The synthetic language of the pivot model: problems, the law of texts about them, and grading.

Owns the two families of design section 12, the law of the training texts, and the split into training and
held-out problems. Pure: randomness comes in as a `numpy.random.Generator`; no model, no tokenizer, no I/O.

All arithmetic is mod 10, operators from left to right. A text is the problem followed by a completion:

- family Q, one pivot at the first token: `Q7+3*2-8:` continues with probability 0.6 by a mostly random digit
  (`A4.`) and with 0.4 by an opener and the whole work (`b7+3=0;0*2=0;0-8=2;A2.`);
- family R, a pivot at every operation: `R7+3*2-8:` continues at each operation with probability 0.6 by a
  random intermediate value (`g4;`) and with 0.4 by a worked step (`w7+3=0;`), and ends with the value
  reached (`A2.`). A step works on the value reached so far, guessed or not, so one early guess spoils the
  answer.

Worked steps are always right. So the wholly worked path is one sequence of high likelihood, while the mass
of the guesses is split over ten digits each: at power 4 nearly all of the mass is on the worked path.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np

__all__ = [
    "CHOICES",
    "FAMILIES",
    "GUESS_PROBABILITY",
    "OPENERS",
    "OPENER_PROBABILITIES",
    "Family",
    "Operation",
    "Problem",
    "Split",
    "Step",
    "extract_answer",
    "held_out",
    "is_correct",
    "is_worked",
    "mixed_completion",
    "parse_steps",
    "problems",
    "sample_completion",
    "sample_problem",
    "sample_text",
    "worked_completion",
]

Family = Literal["Q", "R"]
Split = Literal["train", "held_out"]

FAMILIES: Final[tuple[Family, ...]] = ("Q", "R")
GUESS_PROBABILITY: Final = 0.6
"""Chance of a guess at a pivot, in both families: more than half, so that greedy decoding always guesses."""

OPENERS: Final = "bcdefhijk"
OPENER_PROBABILITIES: Final = (0.7, *([0.3 / 8] * 8))
"""Law of the opener, given that a Q text works.

Nine openers make ten plausible first tokens. They are skewed because power 4 punishes a mass that is split:
nine equal openers would hold `9 (0.4/9)^4 = 3.5e-5` against `10 (0.6/10)^4 = 1.3e-4` for the guesses, so
p^4 would prefer to guess; with 0.7 on the first opener they hold `6.1e-3`, 98% of the mass.
"""

CHOICES: Final = "gw"
"""The characters of an R text that choose between a guess and a worked step; they mean nothing else."""

_RIGHT_GUESS_PROBABILITY: Final = 0.15
_OPERATION_COUNTS: Final[dict[Family, tuple[int, int]]] = {"Q": (3, 5), "R": (3, 6)}
_SYMBOLS: Final = "+-*"
_HELD_OUT_ONE_IN: Final = 10

_ANSWER = re.compile(r"A(\d)")
_STEP = re.compile(r"g(?P<guess>\d);|w?(?P<left>\d)(?P<symbol>[-+*])(?P<right>\d)=(?P<result>\d);")


class Operation(NamedTuple):
    """One operation of a problem, applied to the value reached so far."""

    symbol: str
    operand: int

    def apply(self, value: int) -> int:
        """Return the next value, mod 10."""
        if self.symbol == "+":
            return (value + self.operand) % 10
        if self.symbol == "-":
            return (value - self.operand) % 10
        return value * self.operand % 10

    def worked(self, value: int) -> str:
        """Write the step as a text works it out, e.g. `7+3=0;`."""
        return f"{value}{self}={self.apply(value)};"

    def __str__(self) -> str:
        return f"{self.symbol}{self.operand}"


@dataclass(frozen=True, slots=True)
class Problem:
    """A start digit and the operations on it, mod 10 and left to right.

    Args:
        family, start, operations: the problem.
        shown: how many operations its prompt has worked out already, in family R.
    """

    family: Family
    start: int
    operations: tuple[Operation, ...]
    shown: int = 0

    @property
    def expression(self) -> str:
        """The arithmetic alone, which decides the split: `7+3*2-8`."""
        return f"{self.start}{''.join(map(str, self.operations))}"

    @property
    def text(self) -> str:
        """The prompt: `Q7+3*2-8:`, with the work that it shows."""
        value, work = self.start, ""
        for operation in self.operations[: self.shown]:
            work += f"w{operation.worked(value)}"
            value = operation.apply(value)
        return f"{self.family}{self.expression}:{work}"

    @property
    def answer(self) -> int:
        """The right final digit."""
        value = self.start
        for operation in self.operations:
            value = operation.apply(value)
        return value


class Step(NamedTuple):
    """One step of a completion: was it worked, and is it what honest work would have written."""

    worked: bool
    right: bool


def held_out(problem: Problem) -> bool:
    """Say whether the problem is kept out of training: one expression in ten, by a stable hash.

    The hash ignores the family, so a held-out expression is in neither family's training stream.
    """
    digest = hashlib.sha256(problem.expression.encode()).digest()
    return int.from_bytes(digest[:8], "big") % _HELD_OUT_ONE_IN == 0


def sample_problem(rng: np.random.Generator, family: Family, split: Split) -> Problem:
    """Draw a problem of the split: uniform number of operations, then uniform digits and symbols."""
    low, high = _OPERATION_COUNTS[family]
    while True:
        count = int(rng.integers(low, high + 1))
        digits = rng.integers(10, size=count + 1).tolist()
        symbols = rng.integers(len(_SYMBOLS), size=count).tolist()
        operations = tuple(Operation(_SYMBOLS[s], d) for s, d in zip(symbols, digits[1:], strict=True))
        problem = Problem(family, digits[0], operations)
        if held_out(problem) == (split == "held_out"):
            return problem


def problems(family: Family, count: int, seed: int) -> list[Problem]:
    """Draw `count` distinct held-out problems; the same arguments give the same list."""
    rng = np.random.default_rng([seed, FAMILIES.index(family)])
    found: dict[Problem, None] = {}
    while len(found) < count:
        found[sample_problem(rng, family, "held_out")] = None
    return list(found)


def sample_text(rng: np.random.Generator, family: Family, split: Split) -> str:
    """Draw a problem of the split and a completion of it: one text of the language, without the end token."""
    problem = sample_problem(rng, family, split)
    return problem.text + sample_completion(rng, problem)


def sample_completion(rng: np.random.Generator, problem: Problem) -> str:
    """Draw a completion from the law of the texts."""
    if problem.family == "R":
        return mixed_completion(rng, problem, [GUESS_PROBABILITY] * len(problem.operations))
    if rng.random() >= GUESS_PROBABILITY:
        return worked_completion(problem, opener=OPENERS[rng.choice(len(OPENERS), p=OPENER_PROBABILITIES)])
    guess = problem.answer if rng.random() < _RIGHT_GUESS_PROBABILITY else int(rng.integers(10))
    return f"A{guess}."


def mixed_completion(rng: np.random.Generator, problem: Problem, guess_probabilities: Sequence[float]) -> str:
    """Draw a completion of an R problem, given the chance of a guess at each operation."""
    value, steps = problem.start, ""
    for operation, chance in zip(problem.operations, guess_probabilities, strict=True):
        if rng.random() < chance:
            value = int(rng.integers(10))
            steps += f"g{value};"
        else:
            steps += f"w{operation.worked(value)}"
            value = operation.apply(value)
    return f"{steps}A{value}."


def worked_completion(problem: Problem, opener: str = OPENERS[0]) -> str:
    """Write the completion that works every step: the mode of the training law, with Q's likeliest opener."""
    value, steps = problem.start, ""
    for operation in problem.operations:
        steps += ("w" if problem.family == "R" else "") + operation.worked(value)
        value = operation.apply(value)
    return f"{opener if problem.family == 'Q' else ''}{steps}A{value}."


def extract_answer(completion: str) -> int | None:
    """Read the first `A` with a digit after it; None where the completion states no answer."""
    match = _ANSWER.search(completion)
    return int(match.group(1)) if match else None


def is_correct(problem: Problem, completion: str) -> bool:
    """Say whether the completion states the right answer."""
    return extract_answer(completion) == problem.answer


def is_worked(problem: Problem, completion: str) -> bool:
    """Say whether the completion works every step, rightly, with any opener."""
    if problem.family == "R":
        return completion == worked_completion(problem)
    return completion[:1] in tuple(OPENERS) and completion == worked_completion(problem, completion[0])


def parse_steps(problem: Problem, completion: str) -> Sequence[Step]:
    """List the steps a completion took, each judged from the value that the text itself had reached.

    A guess counts as right, whatever its digit. A worked step is right if it takes up that value, applies the
    operation whose turn it is and gets the result; a step past the last operation is wrong.
    """
    value, steps = problem.start, list[Step]()
    for index, match in enumerate(_STEP.finditer(completion)):
        if match["guess"] is not None:
            steps.append(Step(worked=False, right=index < len(problem.operations)))
            value = int(match["guess"])
            continue
        turn = problem.operations[index] if index < len(problem.operations) else None
        steps.append(Step(worked=True, right=turn is not None and match[0].lstrip("w") == turn.worked(value)))
        value = int(match["result"])
    return steps
