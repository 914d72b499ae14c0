"""Says whether an answer is right, by libraries and extractors; what goes wrong is said of the one answer."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sglang_power.answers.equivalence import (
    CHOICE,
    EXACT,
    NORMALISED,
    NUMBER,
    ComparisonOutcome,
    Keyed,
    Relation,
)
from sglang_power.answers.extraction import EXTRACTORS, Extraction, OptionLetter, Regex, TimedOut, value_of
from sglang_power.answers.mathematics import Mathematics, require_extra
from sglang_power.evaluation import sandbox
from sglang_power.evaluation.items import Item
from sglang_power.evaluation.sandbox import Limits

EXACT_ENOUGH: Final = {"number": NUMBER, "choice": CHOICE, "text": NORMALISED, "regex": EXACT}


@dataclass(frozen=True, slots=True)
class Grade:
    """A verdict.

    Args:
        value: the answer that was found in the text; None where it has none, and of code.
        correct: whether it is right; None where the grader failed or gave up.
        reason: why there is no verdict, or why a program failed.
    """

    value: str | None
    correct: bool | None
    reason: str = ""


class Grader:
    """Judges answers, several at a time.

    Args:
        limits: of a program that a model wrote.
        mathematics: compares formulas; processes that end when told.
    """

    def __init__(self, limits: Limits | None = None, mathematics: Mathematics | None = None) -> None:
        self._limits, self._mathematics = limits or Limits(), mathematics or Mathematics()
        self._programs = asyncio.Semaphore(os.cpu_count() or 1)
        self.networks: set[str] = set()
        """How the network was closed to programs so far."""

    @staticmethod
    def check(items: Sequence[Item]) -> None:
        """Check that what these items need is installed.

        Raises:
            UnsupportedError: math-verify or pebble is missing.
        """
        if any(item.kind == "math" for item in items):
            require_extra()

    async def grade(self, item: Item, text: str) -> Grade:
        """Judge one answer; never raises because of it."""
        try:
            if item.kind == "code":
                return await self._run(item, text)
            found = await asyncio.to_thread(extract, item, text)
            if isinstance(found, TimedOut):
                return Grade(None, None, f"the pattern was searched for {found.seconds:g} seconds")
            value = value_of(found)
            return Grade(None, False) if value is None else await self._compare(item, value)
        except Exception as error:  # noqa: BLE001  (graders are other people's code: the run goes on)
            return Grade(None, None, f"{type(error).__name__}: {error}"[:300])

    def close(self) -> None:
        """End the processes."""
        self._mathematics.close()

    async def _compare(self, item: Item, value: str) -> Grade:
        relation: Relation = self._mathematics if item.kind == "math" else EXACT_ENOUGH[item.kind]
        verdict = await relation.same(item.gold, value)
        if verdict.outcome is ComparisonOutcome.UNDECIDED and item.kind != "math":
            return Grade(value, False)
        decided = verdict.outcome is not ComparisonOutcome.UNDECIDED
        correct = verdict.outcome is ComparisonOutcome.EQUAL if decided else None
        return Grade(value, correct, verdict.reason)

    async def _run(self, item: Item, text: str) -> Grade:
        async with self._programs:
            ending = await asyncio.to_thread(sandbox.run, program_of(item, text), self._limits)
        self.networks.add(ending.network)
        return Grade(None, ending.passed, ending.reason)


def extract(item: Item, text: str) -> Extraction:
    """Return the answer that a text gives to an item."""
    match item.kind:
        case "choice":
            return OptionLetter(item.letters).extract(text)
        case "regex":
            assert item.pattern is not None, "checked when the item was read"
            return Regex.of(item.pattern).extract(text)
        case "math":
            return EXTRACTORS["boxed"].extract(text) or EXTRACTORS["number"].extract(text)
        case kind:
            return EXTRACTORS[kind].extract(text)


KEYS: Final[dict[str, Keyed]] = {"number": NUMBER, "choice": CHOICE}


def class_of(item_kind: str, value: str) -> str:
    """Return what equal answers share, for votes: a normal form of the value."""
    relation = KEYS.get(item_kind, NORMALISED)
    return str(relation.key(value) or value)


_FENCED: Final = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def program_of(item: Item, text: str) -> str:
    """Return the program that says whether an answer is right: the answer's, then the item's tests.

    An answer that holds a fenced block is that block (the last one that defines the function, if any does);
    code that does not define the function goes on where the question ends.
    """
    blocks = _FENCED.findall(text)
    defined = f"def {item.entry_point}(" if item.entry_point else None
    fitting = [block for block in blocks if defined is None or defined in block]
    code = (fitting or blocks or [text])[-1]
    goes_on = item.entry_point is not None and defined not in code
    return f"{item.question if goes_on else _imports(item)}{code}\n\n{item.gold}\n"


def _imports(item: Item) -> str:
    """What stands before the function in the question: answers often leave it out."""
    if item.entry_point is None:
        return ""
    return item.question.partition(f"def {item.entry_point}(")[0]
