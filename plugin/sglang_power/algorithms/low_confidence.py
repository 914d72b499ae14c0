"""Ends a sample that is less confident than most of the first ones (DeepConf, arXiv 2508.15260; a heuristic).

The confidence of a group of `group` tokens in a row is the mean of -H_t over them, and the lowest one of a
sample is that of its least confident group. The first `warmup` samples run to their end; the threshold is the
quantile of order `share` of their lowest confidences. A later sample ends behind the first group below it.

In place of -H_t the paper has the mean of -log p over the k likeliest tokens, which is low at uncertain rows
too. Its groups have 2,048 tokens, in answers of up to 130,000; here they are in proportion to the horizon.
Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from sglang_power.types import ROW_FIELDS, FloatArray

LONGEST_GROUP = 2048
"""Tokens; the paper's."""

SHORTEST_GROUP = 8
"""Tokens: fewer are one word."""

GROUPS = 16
"""Of the longest group's length in an answer at the horizon."""

_ENTROPY = ROW_FIELDS.index("entropy")


def group_of(horizon: int) -> int:
    """Return the length of a group, in tokens, for answers of so many tokens at most."""
    return min(LONGEST_GROUP, max(SHORTEST_GROUP, horizon // GROUPS))


def lowest_confidence(entropies: FloatArray, group: int) -> float:
    """Return the lowest mean of -H over `group` tokens in a row, nats; over all of a shorter sample.

    Args:
        entropies: [T] H_t, nats, T >= 1.
        group: tokens.
    """
    length = min(group, len(entropies))
    sums = np.cumsum(np.concatenate([[0.0], entropies]))
    return -float((sums[length:] - sums[:-length]).max()) / length


def threshold(lowest: Sequence[float], share: float) -> float:
    """Return the quantile of the first samples' lowest confidences, nats.

    Args:
        lowest: of each of them.
        share: order of the quantile, 0 to 1: about so many of the later samples are below it.
    """
    return float(np.quantile(np.asarray(lowest, dtype=np.float64), share))


@dataclass(frozen=True, slots=True)
class LowConfidence:
    """A sample is over behind the first group of tokens whose confidence is below a threshold.

    Args:
        threshold: nats.
        group: tokens.
        recent: H of the rows before, the last ones of a group that is not yet whole.
    """

    threshold: float
    group: int
    recent: tuple[float, ...] = ()

    def monitor(self) -> GroupMonitor:
        """Return what watches one sample."""
        return GroupMonitor(self)

    def behind(self, rows: FloatArray) -> LowConfidence:
        """Return the rule behind more rows, [n, len(ROW_FIELDS)]."""
        seen = (*self.recent, *rows[:, _ENTROPY].tolist())
        return LowConfidence(self.threshold, self.group, seen[len(seen) - min(len(seen), self.group - 1) :])

    def flat(self) -> dict[str, Any]:
        """Return the rule as scalars and a list of scalars."""
        return {"threshold": self.threshold, "group": self.group, "recent": list(self.recent)}

    @classmethod
    def of_flat(cls, flat: dict[str, Any]) -> Self:
        """Return the rule that `flat` wrote."""
        return cls(flat["threshold"], flat["group"], tuple(flat["recent"]))


class GroupMonitor:
    """Watches the groups of one sample, one committed row at a time."""

    def __init__(self, rule: LowConfidence) -> None:
        self._rule, self._seen = rule, 0
        self._last = deque(rule.recent, maxlen=rule.group)
        self._sum = sum(rule.recent)

    def ends(self, index: int, record: Sequence[float]) -> bool:
        """Add the next token's row; True once a whole group is below the threshold."""
        if index < self._seen:
            return False
        self._seen = index + 1
        if len(self._last) == self._rule.group:
            self._sum -= self._last[0]
        self._last.append(float(record[_ENTROPY]))
        self._sum += self._last[-1]
        return len(self._last) == self._rule.group and -self._sum / self._rule.group < self._rule.threshold


def falls_at(rule: LowConfidence, rows: FloatArray, *, ended: bool) -> int | None:
    """Return the index of the row behind which a sample is over; None where it is not below the threshold.

    Args:
        rule: of its first row.
        rows: [T, len(ROW_FIELDS)] so far.
        ended: there are no more; a sample that is shorter than a group is then judged as one.
    """
    monitor = rule.monitor()
    for index, record in enumerate(rows.tolist()):
        if monitor.ends(index, record):
            return index
    short = ended and 0 < len(rows) < rule.group
    below = short and lowest_confidence(rows[:, _ENTROPY], rule.group) < rule.threshold
    return len(rows) - 1 if below else None
