"""Which answers are the same: relations over the values that `extraction` finds.

`Relation.same` is asynchronous, so that a relation may ask another process (`mathematics`) or the served
model (`judging`). Relations of this module compare keys in exact arithmetic: they are reflexive,
symmetric and transitive wherever both answers have a key. An answer without one cannot be read: compared it
is UNDECIDED, and `classes` lets it win nothing.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import inspect
import re
import string
import unicodedata
from collections.abc import Awaitable, Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from sglang_power.answers.numerals import read_number
from sglang_power.types import Usage


class ComparisonOutcome(enum.Enum):
    """What a comparison ended with."""

    EQUAL = "equal"
    DIFFERENT = "different"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of comparing two answers; an undecided one says why, and one that cost tokens, how many."""

    outcome: ComparisonOutcome
    reason: str = ""
    usage: Usage = field(default_factory=Usage)


EQUAL = Verdict(ComparisonOutcome.EQUAL)
DIFFERENT = Verdict(ComparisonOutcome.DIFFERENT)


def undecided(reason: str) -> Verdict:
    """A comparison that came to no result."""
    return Verdict(ComparisonOutcome.UNDECIDED, reason)


@runtime_checkable
class Relation(Protocol):
    """Says whether two answers are the same; need not be symmetric: classes ask both ways."""

    async def same(self, a: str, b: str) -> Verdict:
        """Compare; never raises because of the answers."""
        ...


@runtime_checkable
class Reads(Protocol):
    """A relation that compares what answers mean, and cannot read every answer."""

    async def unreadable(self, answer: str) -> str | None:
        """Why it cannot read an answer; None where it can."""
        ...


async def unreadable(relation: Relation, answer: str) -> str | None:
    """Why a relation cannot read an answer; None where it can, or takes every text as it is."""
    return await relation.unreadable(answer) if isinstance(relation, Reads) else None


@dataclass(frozen=True, slots=True)
class Keyed:
    """Answers are the same if and only if their keys are equal; equal strings always are.

    Args:
        key: an answer's key, None for an answer that is not of the kind.
        kind: what the answers should be, for the reason.
    """

    key: Callable[[str], Hashable | None]
    kind: str

    async def same(self, a: str, b: str) -> Verdict:
        """Compare the keys of two answers, and answers without a key as strings."""
        if a == b:
            return EQUAL
        keys = self.key(a), self.key(b)
        if None in keys:
            return undecided(self.problem((a, b)[keys.index(None)]))
        return EQUAL if keys[0] == keys[1] else DIFFERENT

    async def keys(self, answers: Iterable[str]) -> dict[str, Hashable | None]:
        """The key of every answer; found in a thread, since answers may be long and many."""
        return await asyncio.to_thread(lambda: {answer: self.key(answer) for answer in answers})

    def problem(self, answer: str) -> str:
        """What is wrong with an answer that has no key."""
        return f"{answer!r:.80} is not {self.kind}"


@dataclass(frozen=True, slots=True)
class FunctionRelation:
    """A relation made of a callable (a, b) -> bool or Verdict, plain or asynchronous.

    A plain one runs on the event loop: it must be fast. What it raises is an undecided comparison.
    """

    function: Callable[[str, str], bool | Verdict | Awaitable[bool | Verdict]]

    async def same(self, a: str, b: str) -> Verdict:
        """Ask the callable, unless the answers are the same string."""
        if a == b:
            return EQUAL
        try:
            result = self.function(a, b)
            outcome = await result if inspect.isawaitable(result) else result
        except Exception as error:  # noqa: BLE001  (foreign code: one comparison must not cost the others)
            return undecided(f"{type(error).__name__}: {error}")
        if isinstance(outcome, Verdict):
            return outcome
        if isinstance(outcome, bool | np.bool_):
            return EQUAL if outcome else DIFFERENT
        return undecided(f"the relation returned {outcome!r:.80}, neither bool nor Verdict")


# No pattern of this file may take time that grows with the square of a text: models write long texts.
_QUOTED = re.compile(
    r"([\"'`*_]{1,3})((?:(?!\1).)+)\1|\u201c([^\u201d]+)\u201d|\u2018([^\u2019]+)\u2019|«([^»]+)»", re.DOTALL
)
_ENDING = frozenset(".,;:?…")
_DIGITS = frozenset(string.digits)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b\s*")


def normal_form(text: str, drop_articles: bool = False) -> str:
    """The text in Unicode NFKC and case-folded, runs of whitespace as one blank, without punctuation around.

    Around are quotes and emphasis in pairs, and . , ; : ? ! … at the end (5! keeps its sign). Signs,
    brackets, percent and currency signs stay: they make another answer. So do super- and subscripts, which
    NFKC alone would write on the line (10² is not 102). A text of punctuation only is left as it is.

    Args:
        text: an answer.
        drop_articles: leave out the English words a, an, the.
    """
    folded = text
    for _ in range(2):  # case folding may undo normalisation
        folded = unicodedata.normalize("NFC", "".join(map(_compatible, folded))).casefold()
    shown = " ".join(folded.split())
    while (inner := _without_surroundings(shown)) != shown:
        shown = inner
    if drop_articles:
        shown = _ARTICLE.sub("", shown).strip() or shown
    return shown or text


def _compatible(character: str) -> str:
    """NFKC of one character, but for those above and below the line."""
    raised = unicodedata.decomposition(character).startswith(("<super>", "<sub>"))
    return character if raised else unicodedata.normalize("NFKC", character)


def _without_ending(text: str) -> str:
    kept = len(text)
    while kept and _ends(text[kept - 1], before=text[kept - 2 : kept - 1]):
        kept -= 1
    return text[:kept].strip()


def _ends(mark: str, before: str) -> bool:
    return mark in _ENDING or (mark == "!" and before not in _DIGITS)


def _without_surroundings(text: str) -> str:
    text = _without_ending(text)
    quoted = _QUOTED.fullmatch(text)
    return text if quoted is None else next(inner for inner in quoted.groups()[1:] if inner).strip()


_LETTER = re.compile(r"[\s*_(\[\"']*([A-Za-z])[\s*_)\]\"'.:]*")


def _letter(text: str) -> str | None:
    match = _LETTER.fullmatch(text)
    return match[1].upper() if match else None


EXACT = Keyed(str, "text")
"""The same characters."""

NORMALISED = Keyed(normal_form, "text")
"""The same `normal_form`, articles kept."""

NORMALISED_WITHOUT_ARTICLES = Keyed(functools.partial(normal_form, drop_articles=True), "text")
"""The same `normal_form` without articles: "the Nile" is "Nile"."""

NUMBER = Keyed(read_number, "a number")
"""The same exact value: 0.5, 1/2, .50 and 50% are one number, 0.3333333333 and 1/3 are two."""

CHOICE = Keyed(_letter, "an option letter")
"""The same letter, whatever its case, brackets or full stop."""
