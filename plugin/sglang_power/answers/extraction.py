"""Where the answer is in an answer's text: the last number, option letter, box, or match of a pattern.

Pure functions of a text. What they find goes, as characters, to `spans` (which tokens are the answer) and, as
a value, to `equivalence` (which answers are the same). Answers that a continuation names: `continuation`.

Texts are long and `re` never releases the interpreter lock, so no pattern of ours may take more than linear
time: two runs of the same characters never stand side by side unless the first is possessive (`*+`).
"""

from __future__ import annotations

import functools
import math
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import regex

from sglang_power.answers.numerals import numerals
from sglang_power.answers.spans import Span
from sglang_power.errors import RequestError

MAX_PATTERN = 1000
"""Characters of a pattern."""

MAX_EXPANSION = 100_000
"""Characters of a pattern times its fixed repeats: `regex` unrolls those, at about 270 bytes each."""

_REPEAT = re.compile(r"\{\s*([0-9]+)")
_UNBOUNDED = re.compile(r"\(\?(?:R|&|P>|[+-]?[0-9]|[a-zA-Z0-9]*x[a-zA-Z0-9]*[-:)])")
"""Recursion, whose memory no time limit bounds, and verbose mode, which hides repeats in comments."""


@dataclass(frozen=True, slots=True)
class Extracted:
    """An answer: its value, and the characters that it was read from."""

    value: str
    span: Span


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The search was given up after so many seconds: there may be an answer, nobody knows."""

    seconds: float


Extraction = Extracted | TimedOut | None
"""None: the text has no answer."""


class Extractor(Protocol):
    """Finds the answer in a text; of several the last one counts."""

    def extract(self, text: str) -> Extraction:
        """The answer with its characters; never raises because of the text."""
        ...


def value_of(extraction: Extraction) -> str | None:
    """What `build_classes` takes: the value, or None where there is none."""
    return extraction.value if isinstance(extraction, Extracted) else None


@dataclass(frozen=True, slots=True)
class Number:
    """The last number, in its normal form; `numerals` says what is read as one."""

    def extract(self, text: str) -> Extracted | None:
        """Return the last number of a text; None where it has none."""
        return next((Extracted(n.text, n.span) for n in numerals(text)), None)


@dataclass(frozen=True, slots=True)
class OptionLetter:
    """The last option letter: (B), B., B), B:, "answer is B", "option B", \\boxed{B}, or alone on its line.

    Capitals only. A single capital before a full stop counts (vitamin C.): name the options that there are.

    Args:
        letters: the options, capitals.
    """

    letters: str = string.ascii_uppercase

    def extract(self, text: str) -> Extracted | None:
        """Return the last option letter of a text; None where it has none."""
        found = [match.span(1) for form in _choice_forms(self.letters) for match in form.finditer(text)]
        return Extracted(text[slice(*max(found))], max(found)) if found else None


@functools.cache
def _choice_forms(letters: str) -> tuple[re.Pattern[str], ...]:
    assert letters, "a choice has options"
    assert set(letters) <= set(string.ascii_uppercase), letters
    letter = f"([{letters}])"
    return (
        re.compile(rf"\\boxed\s*\{{\s*+(?:\\[a-z]+\s*\{{\s*+)?\(?{letter}\)?\.?\s*\}}"),
        re.compile(rf"\({letter}\)"),
        re.compile(rf"(?<![\w.'\u2019]){letter}[.):](?!\w)"),
        re.compile(
            rf"(?i:\b(?:answer|option|choice)(?:\s+is)?)\s*+[:=]?\s*+[*_(\"']*{letter}(?![\w'\u2019])"
        ),
        re.compile(rf"(?m)^[ \t*_(\"']*{letter}[ \t*_)\"'.]*$"),
    )


@dataclass(frozen=True, slots=True)
class Boxed:
    """What the last \\boxed{...} holds, blanks aside; none where that box is empty or never closed.

    A last box that the length limit cut is the answer that is missing: earlier ones do not stand in for it.
    """

    def extract(self, text: str) -> Extracted | None:
        """Return what the last box of a text holds; None where it has none that is closed."""
        opened = list(re.finditer(r"\\boxed\s*\{", text))
        if not opened:
            return None
        start = opened[-1].end()
        end = _closing_brace(text, start)
        inside = text[start:end]
        if end is None or not inside.strip():
            return None
        start += len(inside) - len(inside.lstrip())
        return Extracted(inside.strip(), (start, start + len(inside.strip())))


def _closing_brace(text: str, start: int) -> int | None:
    """Where the brace that was opened before `start` closes; escaped braces do not count."""
    depth = 1
    for match in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return start + match.start()
    return None


@dataclass(frozen=True, slots=True)
class Regex:
    """The last match of a pattern that is not empty: of its group where it has one, else as a whole.

    Patterns are those of the `regex` library. A search ends after `seconds`, and it releases the interpreter
    lock while it runs, so that a thread can do it.

    Args:
        pattern: compiled by `of`.
        seconds: time limit of one text.
    """

    pattern: regex.Pattern[str]
    seconds: float = 0.25

    @classmethod
    def of(cls, pattern: str, field: str = "pattern") -> Regex:
        """Compile a client's pattern.

        Args:
            pattern: with one group or none.
            field: the name that the client wrote it under.

        Raises:
            RequestError: it does not compile, has more than one group, or could exhaust the memory.
        """
        if (problem := _beyond_limits(pattern)) is not None:
            raise RequestError(field, pattern, problem, "Use a shorter or simpler pattern")
        try:
            compiled = regex.compile(pattern, cache_pattern=False)
        except (regex.error, RecursionError) as error:
            raise RequestError(field, pattern, f"not a regular expression: {error}", "Correct it") from None
        if compiled.groups > 1:
            hint = "Mark the answer by one group; write the others as (?:...)"
            raise RequestError(field, pattern, f"{compiled.groups} groups", hint)
        return cls(compiled)

    def extract(self, text: str) -> Extraction:
        """Return the last match in a text, or that the search took too long; None where nothing matches."""
        group, last = self.pattern.groups, None
        try:
            for match in self.pattern.finditer(text, timeout=self.seconds, concurrent=True):
                last = match.span(group) if match[group] else last
        except TimeoutError:
            return TimedOut(self.seconds)
        return None if last is None else Extracted(text[slice(*last)], last)


def _beyond_limits(pattern: str) -> str | None:
    """What is wrong with a pattern before it is safe to compile it."""
    if len(pattern) > MAX_PATTERN:
        return f"longer than {MAX_PATTERN} characters"
    unescaped = re.sub(r"\\.", "", pattern, flags=re.DOTALL)
    if _UNBOUNDED.search(unescaped):
        return "recursion and verbose mode are not supported"
    repeats = [max(int(count), 1) for count in _REPEAT.findall(unescaped)]
    if len(pattern) * math.prod(repeats) > MAX_EXPANSION:
        return "its repeats multiply to more than memory is set aside for"
    return None


@dataclass(frozen=True, slots=True)
class Whole:
    """All of the text, blanks around it aside."""

    def extract(self, text: str) -> Extracted | None:
        """Return a text without the blanks around it; None where nothing else is in it."""
        inside = text.strip()
        start = len(text) - len(text.lstrip())
        return Extracted(inside, (start, start + len(inside))) if inside else None


EXTRACTORS: Mapping[str, Extractor] = {
    "number": Number(),
    "choice": OptionLetter(),
    "boxed": Boxed(),
    "text": Whole(),
}
"""Those without parameters, by the name that requests use; a pattern's is `Regex.of`."""
