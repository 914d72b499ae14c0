"""The language of the arithmetic task: problems, their worked solutions, the splits. Pure.

An addition is worked out column by column from the right, with the carry as the third term; a multiplication
row by row, one digit of the second factor after another, and then the sum of the rows:

    347+86=7+6+0=13;4+8+1=13;3+0+1=4;A433.
    23*47=23*7:3*7+0=21;2*7+2=16;161;23*4:3*4+0=12;2*4+1=9;92;161+920:1+0+0=1;6+2+0=8;1+9+0=10;A1081.

Every problem has one solution, and every text is one: nothing is guessed, skipped or drawn. A problem and its
swap (86+347) are on the same side of the split.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

__all__ = [
    "ANSWER_REGEX",
    "MAX_NEW_TOKENS",
    "Problem",
    "Split",
    "Symbol",
    "extract_answer",
    "is_correct",
    "problems",
    "sample_problem",
    "solution",
    "split_of",
]

Symbol = Literal["+", "*"]
SYMBOLS: Final[tuple[Symbol, ...]] = ("+", "*")
Split = Literal["train", "validation", "held_out"]

DIGITS: Final[dict[Symbol, tuple[int, int]]] = {"+": (2, 4), "*": (2, 2)}
"""Least and most digits of each operand, by operation."""

ANSWER_REGEX: Final = r"A(\d+)"
MAX_NEW_TOKENS: Final = 112
"""The longest solution has 103 characters, and an end token."""

_SPLITS: Final = 20
"""Parts that a hash puts problems in: one is held out, one is for validation."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Two numbers and an operation."""

    first: int
    symbol: Symbol
    second: int

    @property
    def text(self) -> str:
        """The prompt: `347+86=`."""
        return f"{self.first}{self.symbol}{self.second}="

    @property
    def family(self) -> str:
        """What the problem is called in tables."""
        return "arithmetic"

    @property
    def answer(self) -> int:
        """The right result."""
        return self.first + self.second if self.symbol == "+" else self.first * self.second


def split_of(problem: Problem) -> Split:
    """Return the side that a problem is on, by a hash that ignores the order of its operands."""
    low, high = sorted((problem.first, problem.second))
    digest = hashlib.sha256(f"{low}{problem.symbol}{high}".encode()).digest()
    part = int.from_bytes(digest[:8], "big") % _SPLITS
    return "held_out" if part == 0 else "validation" if part == 1 else "train"


def sample_problem(rng: np.random.Generator, split: Split) -> Problem:
    """Draw a problem of the split: operation, numbers of digits and digits, each uniformly."""
    while True:
        symbol = SYMBOLS[int(rng.integers(len(SYMBOLS)))]
        problem = Problem(_number(rng, symbol), symbol, _number(rng, symbol))
        if split_of(problem) == split:
            return problem


def _number(rng: np.random.Generator, symbol: Symbol) -> int:
    low, high = DIGITS[symbol]
    digits = int(rng.integers(low, high + 1))
    return int(rng.integers(10 ** (digits - 1), 10**digits))


def problems(count: int, seed: int, split: Split = "held_out") -> list[Problem]:
    """Draw `count` distinct problems of a split; the same arguments give the same list."""
    rng = np.random.default_rng(seed)
    found: dict[Problem, None] = {}
    while len(found) < count:
        found[sample_problem(rng, split)] = None
    return list(found)


def solution(problem: Problem) -> str:
    """Write the one worked solution of a problem, without the end token."""
    written = _columns if problem.symbol == "+" else _rows
    return f"{written(problem.first, problem.second)}A{problem.answer}."


def _columns(first: int, second: int) -> str:
    """Write the sums of all columns, from the right, each with the carry as its third term."""
    carry, work = 0, ""
    for up, low in zip(*_aligned(first, second), strict=True):
        total = up + low + carry
        work += f"{up}+{low}+{carry}={total};"
        carry = total // 10
    return work


def _aligned(first: int, second: int) -> tuple[list[int], list[int]]:
    """List the digits of both numbers from the right, the shorter one filled up with zeros."""
    width = max(len(str(first)), len(str(second)))
    up, low = ([int(digit) for digit in reversed(str(number).zfill(width))] for number in (first, second))
    return up, low


def _rows(first: int, second: int) -> str:
    """Write the product with each digit of the second factor, from the right, and the sum of the rows."""
    work, total = "", 0
    for place, digit in enumerate(int(digit) for digit in reversed(str(second))):
        row = first * digit
        work += f"{first}*{digit}:{_row(first, digit)}{row};"
        shifted = row * 10**place
        work += f"{total}+{shifted}:{_columns(total, shifted)}" if place else ""
        total += shifted
    return work


def _row(first: int, digit: int) -> str:
    """Write the products of one digit with all digits of a number, from the right, each with its carry."""
    carry, work = 0, ""
    for up in (int(each) for each in reversed(str(first))):
        total = up * digit + carry
        work += f"{up}*{digit}+{carry}={total};"
        carry = total // 10
    return work


def extract_answer(completion: str) -> int | None:
    """Read the first `A` with digits behind it; None where the completion states no answer."""
    match = re.search(ANSWER_REGEX, completion)
    return int(match[1]) if match else None


def is_correct(problem: Problem, completion: str) -> bool:
    """Say whether the completion states the right answer, whatever its work is worth."""
    return extract_answer(completion) == problem.answer
