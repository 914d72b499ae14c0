"""The answers of a run as a table: arms by items, in one order whatever order they came in. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from sglang_power.evaluation.arms import Arm
from sglang_power.evaluation.records import Kept, Key, Run


@dataclass(frozen=True)
class Answers:
    """The answers of one arm.

    Args:
        arm: the sampler.
        by_item: its answers by item, in the order of items and samples; no item without one.
    """

    arm: Arm
    by_item: Mapping[str, Sequence[Kept]]

    @cached_property
    def all(self) -> list[Kept]:
        """Return every answer."""
        return [answer for group in self.by_item.values() for answer in group]

    def groups(self, value: Callable[[Kept], float]) -> list[list[float]]:
        """Return a figure of every answer, item by item."""
        return [[value(answer) for answer in group] for group in self.by_item.values()]

    def known(self, *values: Callable[[Kept], float | None]) -> list[list[list[float]]]:
        """Return figures of those answers that have all of them: figure by figure, item by item."""
        kept: list[list[list[float]]] = [[] for _ in values]
        for group in self.by_item.values():
            rows = [[value(answer) for value in values] for answer in group]
            whole = [[part for part in row if part is not None] for row in rows if None not in row]
            if whole:
                for column, parts in zip(kept, zip(*whole, strict=True), strict=True):
                    column.append(list(parts))
        return kept

    def mean(self, value: Callable[[Kept], float]) -> float:
        """Return the mean of a figure over all answers."""
        return sum(map(value, self.all)) / len(self.all)


@dataclass(frozen=True)
class Table:
    """The answers of a run.

    Args:
        run: what was asked for.
        arms: those that have answers, by name.
    """

    run: Run
    arms: Mapping[str, Answers]

    def of(self, sampler: str) -> Answers | None:
        """Return the first arm of a sampler; None where it has no answers."""
        return next((answers for answers in self.arms.values() if answers.arm.sampler == sampler), None)

    def common(self, *arms: Answers) -> list[str]:
        """Return the items that all of some arms answered, in order."""
        return [item for item in self.run.items if all(item in answers.by_item for answers in arms)]


def table(run: Run, kept: Mapping[Key, Kept]) -> Table:
    """Put answers into order; what belongs to no item or arm of the run is left out."""
    arms = {}
    for arm in run.arms:
        rows = {
            item: [kept[key] for sample in range(arm.samples) if (key := (item, arm.name, sample)) in kept]
            for item in run.items
        }
        answered = {item: group for item, group in rows.items() if group}
        if answered:
            arms[arm.name] = Answers(arm, answered)
    return Table(run, arms)
