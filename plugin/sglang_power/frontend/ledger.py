"""What a program's text is made of, in token ids: constants, and generated segments as they were drawn.

SGLang's interpreter keeps one string per program and sends it whole, so a server tokenizes generated text
again, maybe into other tokens. A ledger stands beside that string and remembers the ids. Pure: it knows
neither the interpreter nor a server; `session` fills it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

REPLACEMENT = "�"
"""What decoders write for the bytes of a character that is not complete."""


@dataclass(frozen=True, slots=True)
class DrawnText:
    """How the tokens of a generated segment came about.

    Args:
        name: the program's variable; None for a segment without one.
        ids: everything that was drawn, the stop included, which the text leaves out.
        text: the variable's text.
        exponent: the ids are a draw from p^exponent, normalised: 1 for plain sampling at temperature 1, alpha
            for power sampling; None for any other law.
        settings: SGLang's sampling parameters of the request, for whoever goes on with the segment.
        taken: the end of the text in front, U+FFFD, which the segment shows as a whole character instead.
        prefix: the beginning of the segment that is generated next, which takes it up.
        reason: why a prefix ends its segment, as SGLang's finish_reason; None where the segment goes on.
    """

    name: str | None
    ids: tuple[int, ...]
    text: str
    exponent: float | None = None
    settings: Any = None
    taken: str = ""
    prefix: bool = False
    reason: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """A stretch of text and its tokens; `draw` tells of one that was generated."""

    text: str
    ids: tuple[int, ...]
    draw: DrawnText | None = None


class Ledger:
    """The pieces of one program, in order."""

    def __init__(self, pieces: list[LedgerEntry] | None = None) -> None:
        self.pieces = list(pieces or [])

    def copy(self) -> Self:
        """For a fork, which goes its own way from here."""
        return type(self)(self.pieces)

    @property
    def text(self) -> str:
        """Of all pieces."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def ids(self) -> tuple[int, ...]:
        """Of all pieces."""
        return self.ids_before(len(self.pieces))

    def ids_before(self, index: int) -> tuple[int, ...]:
        """The tokens in front of a piece."""
        return tuple(token for piece in self.pieces[:index] for token in piece.ids)

    def append(self, piece: LedgerEntry) -> None:
        """Add what follows."""
        self.pieces.append(piece)

    def missing(self, text: str) -> str:
        """The end of the program's text that has no ids yet.

        Pieces that the text no longer holds are dropped: `sgl.separate_reasoning` rewrites what has been
        generated, which then is constant text like any other.

        Args:
            text: all of the program's text.
        """
        kept, at = 0, 0
        for piece in self.pieces:
            if not text.startswith(piece.text, at):
                break
            kept, at = kept + 1, at + len(piece.text)
        del self.pieces[kept:]
        return text[at:]

    def last_draw(self) -> DrawnText | None:
        """The generated segment at the very end; None where constant text follows it, or nothing precedes."""
        return self.pieces[-1].draw if self.pieces else None

    def take_prefix(self) -> LedgerEntry:
        """Remove the prefix at the end, for the segment that begins with it; an empty piece where none is."""
        draw = self.last_draw()
        return self.pieces.pop() if draw is not None and draw.prefix else LedgerEntry("", ())

    def withdraw(self, draw: DrawnText) -> None:
        """Remove the generated segment at the very end, and give back what it took from the one in front."""
        self.pieces.pop()
        if draw.taken:
            last = self.pieces[-1]
            self.pieces[-1] = replace(last, text=last.text + draw.taken)

    def split_character(self) -> tuple[tuple[int, ...], str, int]:
        """Where the text ends inside a character of a generated segment, take its replacement back.

        Returns:
            ids and text of all segments at the end, and how many characters of the text stay; the others the
            next segment shows, complete. Nothing where no character is split.
        """
        draw = self.last_draw()
        if draw is None or not self.pieces[-1].text.endswith(REPLACEMENT):
            return (), "", 0
        run = list(itertools.takewhile(lambda piece: piece.draw is not None, reversed(self.pieces)))[::-1]
        text, last = "".join(piece.text for piece in run), run[-1]
        self.pieces[-1] = replace(last, text=last.text.rstrip(REPLACEMENT))
        kept = len(text) - len(last.text) + len(self.pieces[-1].text)
        return tuple(token for piece in run for token in piece.ids), text, kept

    def draws_from(self, index: int) -> list[tuple[tuple[int, ...], DrawnText]]:
        """Every generated segment from a piece on, with the tokens in front of it."""
        return [
            (self.ids_before(at), piece.draw)
            for at, piece in enumerate(self.pieces)
            if at >= index and piece.draw is not None and piece.draw.ids
        ]
