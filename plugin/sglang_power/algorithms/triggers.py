"""When a path should branch: triggers look at the row of logits that a token is drawn from.

entropy     H_t > h                                                                  nats
varentropy  V_t > v                                                                  nats^2
ratio       p(2nd) / p(1st) > rho           (the best detector of SED, arXiv 2405.16552)
jump        H_t - H_{t-1} > d, H_{-1} = 0   (what entropy cuts prefer, arXiv 2605.30327)
quantile    at least a share q of the path's earlier entropies lies below H_t
entropix_*  a quadrant of (H_t, V_t), each "high" above its threshold (github.com/xjdr-alt/entropix)

Several triggers fire where any of them does. A monitor is keyed by the position in the answer: a row that it
is shown again (a prefill chunk, an overshoot step, a retracted request) changes nothing. The same monitor
runs in the scheduler, where it only ends a child early, and in the driver, which decides. Pure.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from sglang_power.types import FloatArray


class Signals(NamedTuple):
    """What triggers compare, of one row.

    entropy, varentropy  H_t, V_t of the base law;  ratio  p(2nd) / p(1st);  jump  H_t - H_{t-1}
    rank  share of the path's earlier entropies below H_t;  earlier  how many there are
    """

    entropy: float
    varentropy: float
    ratio: float
    jump: float
    rank: float
    earlier: int


def entropy_jump(entropy: float, previous: float) -> float:
    """H_t - H_{t-1}: how much less certain the model is than one token before, nats."""
    return entropy - previous


def _above_quantile(row: Signals, share: float) -> bool:
    """Return whether a row is above the quantile, and so many came before that one of them is expected there.

    That is n (1 - share) >= 1, asked as (n - 1) / n >= share: a division of small integers rounds to the
    number that a decimal share is written as, so n = 5 is enough for 0.8, where 5 * (1 - 0.8) is below 1.
    """
    enough = row.earlier > 0 and (row.earlier - 1) / row.earlier >= share
    return enough and row.rank >= share


RULES: dict[str, Callable[..., bool]] = {
    "entropy": lambda row, h: row.entropy > h,
    "varentropy": lambda row, v: row.varentropy > v,
    "ratio": lambda row, rho: row.ratio > rho,
    "jump": lambda row, d: row.jump > d,
    "quantile": _above_quantile,
    "entropix_low_low": lambda row, h, v: row.entropy <= h and row.varentropy <= v,
    "entropix_high_low": lambda row, h, v: row.entropy > h and row.varentropy <= v,
    "entropix_low_high": lambda row, h, v: row.entropy <= h and row.varentropy > v,
    "entropix_high_high": lambda row, h, v: row.entropy > h and row.varentropy > v,
}
"""Name -> whether it fires: (Signals, its thresholds) -> bool."""

THRESHOLDS: dict[str, int] = {name: 2 if name.startswith("entropix") else 1 for name in RULES}
"""How many thresholds a trigger has."""

DEFAULT_THRESHOLDS: dict[str, tuple[float, ...]] = {
    "entropy": (0.6,),
    "varentropy": (1.0,),
    "ratio": (0.5,),
    "jump": (0.6,),
    "quantile": (0.8,),
}
"""Two equally likely tokens have 0.69 nats. Those of the quadrants depend on the model: there are none."""


@dataclass(frozen=True, slots=True)
class Trigger:
    """One trigger: a name of RULES and its thresholds."""

    name: str
    thresholds: tuple[float, ...]

    def fires(self, row: Signals) -> bool:
        """Whether this row asks for a branch; never where a statistic is not a number."""
        return RULES[self.name](row, *self.thresholds)


@dataclass(frozen=True, slots=True)
class TriggerState:
    """What triggers know of a path.

    Args:
        position: rows seen, which is the position in the answer of the next one.
        previous: H of the row before; 0 at the start.
        open_from: the first position that may fire.
        history: the entropies of all rows, ascending; kept for "quantile" only.
    """

    position: int = 0
    previous: float = 0.0
    open_from: int = 0
    history: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Watch:
    """Triggers on a continuation, from a state on that a child inherits from its fork.

    Args:
        triggers: any of them may fire.
        state: of the path before.
        start: position in the answer of the continuation's first row; rows that the state has seen are among
            its rows where the fork's own token is generated again.
    """

    triggers: tuple[Trigger, ...]
    state: TriggerState = TriggerState()
    start: int = 0

    def monitor(self) -> TriggerMonitor:
        """Return what watches one path."""
        return TriggerMonitor(self)

    def behind(self, rows: FloatArray) -> Watch:
        """Return the watch behind more rows, [n, len(ROW_FIELDS)]."""
        monitor = TriggerMonitor(self)
        for position, record in enumerate(rows.tolist(), start=self.start):
            monitor.observe(position, record)
        return Watch(self.triggers, monitor.state, self.start + len(rows))

    def flat(self) -> dict[str, Any]:
        """Return the watch as scalars and lists of scalars."""
        state = self.state
        return {
            "names": [trigger.name for trigger in self.triggers],
            "counts": [len(trigger.thresholds) for trigger in self.triggers],
            "thresholds": [value for trigger in self.triggers for value in trigger.thresholds],
            "position": state.position,
            "previous": state.previous,
            "open_from": state.open_from,
            "history": list(state.history),
            "start": self.start,
        }

    @classmethod
    def of_flat(cls, flat: dict[str, Any]) -> Self:
        """Return the watch that `flat` wrote."""
        thresholds = iter(flat["thresholds"])
        named = zip(flat["names"], flat["counts"], strict=True)
        return cls(
            tuple(Trigger(name, tuple(itertools.islice(thresholds, count))) for name, count in named),
            TriggerState(flat["position"], flat["previous"], flat["open_from"], tuple(flat["history"])),
            flat["start"],
        )


class TriggerMonitor:
    """Watches one path, one committed row at a time."""

    def __init__(self, watch: Watch) -> None:
        state = watch.state
        self._start = watch.start
        self._triggers = watch.triggers
        self._position, self._previous, self._open_from = state.position, state.previous, state.open_from
        self._history = list(state.history)
        self._keeps_history = any(trigger.name == "quantile" for trigger in watch.triggers)

    @property
    def state(self) -> TriggerState:
        """Where it is."""
        return TriggerState(self._position, self._previous, self._open_from, tuple(self._history))

    def ends(self, index: int, record: Sequence[float]) -> bool:
        """Take the next row of the continuation; True where a trigger fires at it."""
        return self.observe(self._start + index, record) is not None

    def observe(self, position: int, record: Sequence[float]) -> Trigger | None:
        """The trigger that fires at this row, the first of several.

        Args:
            position: of the row in the answer; a row before the next expected one is ignored.
            record: its ROW_FIELDS.
        """
        if position < self._position:
            return None
        row = self.signals(record)
        self._position, self._previous = position + 1, row.entropy
        if self._keeps_history and not math.isnan(row.entropy):
            bisect.insort(self._history, row.entropy)
        if position < self._open_from:
            return None
        return next((trigger for trigger in self._triggers if trigger.fires(row)), None)

    def first_firing(self, rows: FloatArray) -> tuple[int, Trigger] | None:
        """Observe rows in order up to the first that fires: its index and its trigger; None if none does."""
        for index, record in enumerate(rows.tolist()):
            trigger = self.observe(self._position, record)
            if trigger is not None:
                return index, trigger
        return None

    def signals(self, record: Sequence[float]) -> Signals:
        """Return what triggers compare at the next row, from its ROW_FIELDS."""
        log_p, _, _, entropy, varentropy, gap, margin = (float(value) for value in record)
        top = math.exp(log_p) - min(margin, 0.0)  # the drawn token need not be the most likely one
        earlier = len(self._history)
        return Signals(
            entropy=entropy,
            varentropy=varentropy,
            ratio=(top - gap) / top if top > 0.0 else math.nan,
            jump=entropy_jump(entropy, self._previous),
            rank=bisect.bisect_left(self._history, entropy) / earlier if earlier else 0.0,
            earlier=earlier,
        )


def signals_along(rows: Sequence[Sequence[float]]) -> list[Signals]:
    """Return what triggers compare at every row of one path, from its beginning.

    Args:
        rows: the ROW_FIELDS of each.
    """
    monitor = TriggerMonitor(Watch((Trigger("quantile", (1.0,)),)))  # the one that keeps a history
    found = []
    for position, record in enumerate(rows):
        found.append(monitor.signals(record))
        monitor.observe(position, record)
    return found
