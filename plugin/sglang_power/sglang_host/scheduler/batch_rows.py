"""What the plugin keeps of the requests of one batch: an entry per row, which follows the batch.

Owns filtering and merging, and nothing of what the entries mean. Scheduler process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Self, TypeVar

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class BatchRows(Generic[Entry]):
    """The entries of one batch; None where a row has none. Immutable, so it may be shared."""

    rows: tuple[Entry | None, ...]

    @cached_property
    def indices(self) -> list[int]:
        """Return the batch positions of the rows with an entry."""
        return [i for i, row in enumerate(self.rows) if row is not None]

    @cached_property
    def members(self) -> list[Entry]:
        """Return the entries, in batch order."""
        return [row for row in self.rows if row is not None]

    def keep(self, indices: Sequence[int]) -> Self:
        """Return the entries of a filtered batch."""
        return type(self)(tuple(self.rows[i] for i in indices))

    def followed_by(self, other: Self) -> Self:
        """Return the entries of two merged batches."""
        return type(self)(self.rows + other.rows)


Rows = TypeVar("Rows", bound=BatchRows[Any])


def some(rows: Rows) -> Rows | None:
    """Return rows of which some have an entry, or None where none has."""
    return rows if rows.indices else None


def merged(kind: type[Rows], mine: Rows | None, theirs: Rows | None, sizes: tuple[int, int]) -> Rows | None:
    """Return the rows of two merged batches, of which each may have none.

    Args:
        kind: of rows.
        mine, theirs: the rows of both.
        sizes: how many requests each batch has.
    """
    if mine is None and theirs is None:
        return None
    first, second = (
        kind((None,) * size) if rows is None else rows
        for rows, size in zip((mine, theirs), sizes, strict=True)
    )
    return first.followed_by(second)
