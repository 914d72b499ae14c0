"""Asking a path for its answer: what to append to it, and where the answer that follows was in the path.

CoT-decoding (arXiv 2402.10200, section 3.2): strip the final stop, append "So the answer is", let the model
go on, and align what it says back to the path, whose own tokens then carry the confidence. Pure; the host
runs the continuation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sglang_power.answers.extraction import Extracted
from sglang_power.answers.spans import Spelled

CONTINUATION = "So the answer is"


@dataclass(frozen=True, slots=True)
class Stem:
    """A path without its final stop.

    Args:
        tokens: how many of its tokens remain.
        text: what remains of its text.
        tail: the end of that text that no remaining token spells, because its token also spells the stop.
    """

    tokens: int
    text: str
    tail: str

    def appended(self, phrase: str = CONTINUATION) -> str:
        """What follows the remaining tokens: the tail, a blank where the text has none, the phrase."""
        blank = "" if not self.text or self.text[-1].isspace() else " "
        return f"{self.tail}{blank}{phrase}"


def stem(path: Spelled, matched: int | str | None) -> Stem:
    """A path without the stop that ended it.

    Args:
        path: all of its tokens, the stop included.
        matched: what ended it, as in SGLang's finish reason: a token id (the last token), a stop string (its
            first occurrence, where SGLang cuts the client's text), or None (nothing: the horizon).
    """
    end, tokens = len(path.text), len(path.offsets)
    if isinstance(matched, int) and tokens:
        tokens -= 1
        end = path.offsets[tokens][0]
    elif isinstance(matched, str) and (at := path.text.find(matched)) >= 0:
        end = at
        tokens = next((i for i, (_, e) in enumerate(path.offsets) if e > at), tokens)
    spelled_end = max((e for _, e in path.offsets[:tokens]), default=0)
    return Stem(tokens, path.text[:end], path.text[spelled_end:end])


@dataclass(frozen=True, slots=True)
class Statement:
    """The first sentence of the first line that has one, without its full stop: what follows the phrase."""

    def extract(self, text: str) -> Extracted | None:
        """Return the first sentence of the first line that has one; None where no line has."""
        match = re.search(r"(?:[^\s:*_.,!?]|\.(?=\d))[^\n]*?(?=[\s*_]*(?:[.!?]+[*_]*(?:\s|$)|\n|$))", text)
        return Extracted(match[0], match.span()) if match else None


@dataclass(frozen=True, slots=True)
class Aligned:
    """The answer that a continuation named.

    Args:
        answer: its span is in the path's text if `in_path`, else in the continuation's.
        in_path: whether the path has it; without, its confidence is that of the continuation's own tokens.
    """

    answer: Extracted
    in_path: bool


def align(path: str, continuation: str) -> Aligned | None:
    """The answer of a continuation, its first sentence, at its last occurrence in the path.

    Args:
        path: text of the stem.
        continuation: text that followed the phrase.
    """
    found = Statement().extract(continuation)
    if found is None:
        return None
    span = last_occurrence(continuation[slice(*found.span)], path)
    return Aligned(found, in_path=False) if span is None else Aligned(Extracted(found.value, span), True)


def last_occurrence(answer: str, text: str) -> tuple[int, int] | None:
    """Where `answer` stands last in `text`, not inside a longer number or word (4 in 24, 4.5 or 1,4)."""
    last = None
    for match in re.finditer(f"(?={re.escape(answer)})", text) if answer else ():
        start, end = match.start(), match.start() + len(answer)
        inside = _joins(text[max(start - 2, 0) : start], answer[:2])
        last = last if inside or _joins(answer[-2:], text[end : end + 2]) else (start, end)
    return last


def _joins(left: str, right: str) -> bool:
    """Whether two pieces of text run on into one number or one word."""
    if left[-1:].isalpha() and right[:1].isalpha():
        return True
    return re.search(r"\d[.,]?\|[.,]?\d", f"{left}|{right}") is not None
