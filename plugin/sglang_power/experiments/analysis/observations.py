"""One row per unit: what the statistics see of an experiment's log. Knows neither files nor verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sglang_power.types import FloatArray

Mask: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True)
class Column:
    """One metric of every unit.

    Args:
        values: [units]; of a ratio metric its numerators.
        counts: [units] denominators of a ratio metric, else None.
    """

    values: FloatArray
    counts: FloatArray | None = None

    def of(self, rows: Mask) -> Column:
        """The column of some units, by a mask."""
        return Column(self.values[rows], None if self.counts is None else self.counts[rows])


@dataclass(frozen=True)
class Observations:
    """The units of one phase whose outcome window has closed, in order of their first enrolment.

    Every prefix is what was known at some earlier time, which is what sequential statistics need.

    Args:
        arms: [units] the arm that each was assigned (intention to treat).
        columns: metric -> its values.
        weights: arm -> basis points of the phase.
        windows: [units] numbers of a switchback's windows; None where no window is left out.
    """

    arms: Sequence[str]
    columns: Mapping[str, Column]
    weights: Mapping[str, int]
    windows: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.arms)

    def in_arms(self, *names: str) -> Mask:
        """[units] bool: who is in one of the arms."""
        return np.isin(np.asarray(self.arms, dtype=object), names)

    @property
    def follows(self) -> Mask:
        """[units] bool: whether the row before is the window before; windows without traffic have no row."""
        if self.windows is None:
            return np.arange(len(self)) > 0
        follows: Mask = np.diff(self.windows, prepend=-2) == 1
        return follows
