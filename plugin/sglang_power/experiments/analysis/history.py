"""What the servers said of an experiment while it ran: when it was killed or drained, and judged how.

Made of the change lines of all processes, in order of time. A line does not say whose it is, so the last one
that was written speaks for all servers: a kill begins with the first server that hears of it, and ends when
one enrols again. Clocks and reload times that differ move these moments by as much.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sglang_power.experiments.records import Change


@dataclass(frozen=True)
class Period:
    """A span of time, in seconds since 1970.

    Args:
        began, ended: its ends; None where it has not ended.
    """

    began: float
    ended: float | None

    def meets(self, first: float, last: float) -> bool:
        """Whether it has a moment between two others."""
        return self.began < last and (self.ended is None or self.ended > first)


@dataclass(frozen=True)
class History:
    """What became of an experiment.

    Args:
        kills: when nobody was enrolled.
        drains: when units that came were not to be analysed; a kill does not end one.
        rules: when which rules of judgement were in force.
    """

    kills: tuple[Period, ...] = ()
    drains: tuple[Period, ...] = ()
    rules: tuple[tuple[Period, str], ...] = ()

    @property
    def killed(self) -> float | None:
        """When the kill that still holds began."""
        return _open(self.kills)

    @property
    def draining(self) -> float | None:
        """When the drain that still holds began; one that was taken back admits those who came meanwhile."""
        return _open(self.drains)

    def was_killed(self, at: float) -> bool:
        """Whether nobody should have been enrolled at a moment."""
        return any(kill.meets(at, at) for kill in self.kills)

    def other_rules(self, rules: str, first: float, last: float) -> float | None:
        """Until when data between two moments were to be judged by other rules; None if they never were."""
        others = [span for span, each in self.rules if each != rules and span.meets(first, last)]
        return min(last, others[-1].ended or last) if others else None


def history(changes: Iterable[Change]) -> History:
    """Put change lines of one experiment in order.

    Lines of every version of the file count: a kill concerns the experiment, whatever else was edited.
    """
    told = sorted(changes, key=lambda change: change.at)
    told = [change for change in told if change.why != "removed"]  # by one server, perhaps
    return History(
        kills=_periods([(change.at, change.why == "killed") for change in told]),
        drains=_periods([(change.at, change.why == "draining") for change in told if change.enrolling]),
        rules=_rules(told),
    )


def _periods(events: Sequence[tuple[float, bool]]) -> tuple[Period, ...]:
    found: list[Period] = []
    began: float | None = None
    for at, holds in events:
        if holds and began is None:
            began = at
        elif not holds and began is not None:
            found.append(Period(began, at))
            began = None
    return tuple(found) if began is None else (*found, Period(began, None))


def _rules(told: Sequence[Change]) -> tuple[tuple[Period, str], ...]:
    ends = [change.at for change in told[1:]]
    return tuple(
        (Period(change.at, end), change.rules)
        for change, end in zip(told, [*ends, None], strict=False)
        if change.rules is not None
    )


def _open(periods: Sequence[Period]) -> float | None:
    return periods[-1].began if periods and periods[-1].ended is None else None
