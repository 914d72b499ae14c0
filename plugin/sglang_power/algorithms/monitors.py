"""Rules on the rows of one engine call that end it early, and what watches them.

A rule is frozen and says when a call is over; it travels with the call, flat, to whatever generates. Its
monitor is fed every committed row once, in order. An engine that stops late, early or never changes no
answer: who made the call decides again from the rows. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from sglang_power.algorithms.early_rejection import EarlyRejection, TrialRejection
from sglang_power.algorithms.low_confidence import LowConfidence
from sglang_power.algorithms.triggers import Watch
from sglang_power.types import FloatArray

Flat = dict[str, Any]
"""Scalars and lists of scalars: what a server's transport can carry."""


class RowMonitor(Protocol):
    """Watches one call."""

    def ends(self, index: int, record: Sequence[float]) -> bool:
        """Take the next row; True once the call should end behind it.

        Args:
            index: of its token among the new ones of the call; a row that comes again changes nothing.
            record: its ROW_FIELDS.
        """
        ...


@runtime_checkable
class RowRule(Protocol):
    """When a call ends early."""

    def monitor(self) -> RowMonitor:
        """Return a monitor at the start of the call."""
        ...

    def behind(self, rows: FloatArray) -> RowRule | None:
        """Return the rule for the rest of a call, behind [n, len(ROW_FIELDS)] rows; None where it is over."""
        ...

    def flat(self) -> Flat:
        """Return what `of_flat` makes the rule of again; entries that are None may be left out."""
        ...

    @classmethod
    def of_flat(cls, flat: Flat) -> RowRule:
        """Return the rule that `flat` describes."""
        ...


RULES: dict[str, type[RowRule]] = {
    "rejection": EarlyRejection,
    "trial": TrialRejection,
    "watch": Watch,
    "confidence": LowConfidence,
}
"""Every rule that a call may carry, by the name under which it travels."""


def flat_rules(rules: Sequence[RowRule]) -> Flat:
    """Return rules as one flat dictionary."""
    names = {kind: name for name, kind in RULES.items()}
    return {
        f"{names[type(rule)]}.{key}": value
        for rule in rules
        for key, value in rule.flat().items()
        if value is not None
    }


def rules_of(flat: Flat) -> tuple[RowRule, ...]:
    """Return the rules among the entries of a flat dictionary; the inverse of `flat_rules`."""
    parts = {
        name: {
            key.removeprefix(f"{name}."): value for key, value in flat.items() if key.startswith(f"{name}.")
        }
        for name in RULES
    }
    return tuple(RULES[name].of_flat(part) for name, part in parts.items() if part)
