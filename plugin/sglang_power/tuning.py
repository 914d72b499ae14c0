"""Thresholds for a model from the rows of its own answers: each trigger fires at a stated share of them.

Owns the arithmetic and the section of the configuration file that comes of it. Knows neither HTTP nor the
command line; `model_rows` measures. A threshold is a quantile of the rows, so it holds for texts like those
measured; how well is told by halves: thresholds of one half of the answers on the rows of the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import yaml

from sglang_power.algorithms.triggers import Signals, Trigger

Answers = Sequence[Sequence[Signals]]
"""The rows of every answer."""

QUADRANT: Final = "entropix_low_high"
"""Where the policy `entropix` explores, and forks with explore="branch"."""

DECIMALS: Final = 4

QUANTILES: Final = tuple(percent / 100 for percent in range(50, 100))
"""Shares that are tried for the trigger of that name: it begins late, so its rate is not 1 - share."""

VALUES: Final[dict[str, Callable[[Signals], float]]] = {
    "entropy": lambda row: row.entropy,
    "varentropy": lambda row: row.varentropy,
    "ratio": lambda row: row.ratio,
    "jump": lambda row: row.jump,
}
"""Triggers that compare one number of the row with their threshold."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """One trigger with its measured threshold.

    Args:
        trigger: what was measured.
        share: of the measured rows at which it fires.
        held_out: the same for thresholds of one half of the answers, on the other half.
    """

    trigger: Trigger
    share: float
    held_out: float


def tuned(answers: Answers, rate: float) -> list[Tuned]:
    """Return the triggers that have a threshold at which they fire at `rate` of the rows, or at less.

    Args:
        answers: rows of at least two answers.
        rate: above 0, below 1.
    """
    halves = answers[::2], answers[1::2]
    found = []
    for name in (*VALUES, "quantile", QUADRANT):
        trigger = trigger_at(name, answers, rate)
        crossed = [trigger_at(name, half, rate) for half in halves]
        if trigger is None or any(other is None for other in crossed):
            continue
        shares = [
            share_of(other, half) for other, half in zip(crossed, reversed(halves), strict=True) if other
        ]
        found.append(Tuned(trigger, share_of(trigger, answers), sum(shares) / len(shares)))
    return found


def trigger_at(name: str, answers: Answers, rate: float) -> Trigger | None:
    """Return a trigger that fires at `rate` of the rows at most, and as often as that allows.

    None where no threshold that requests may name does so. For the quadrant the entropy is high at `rate` of
    the rows, and at `rate` of all rows it is low while the varentropy is high.
    """
    rows = [row for answer in answers for row in answer]
    if name == "quantile":
        asked = (Trigger(name, (share,)) for share in QUANTILES)
        return next((trigger for trigger in asked if 0.0 < share_of(trigger, answers) <= rate), None)
    allowed = math.floor(rate * len(rows))
    if name == QUADRANT:
        high = _exceeded_by([row.entropy for row in rows], allowed)
        low = [row.varentropy for row in rows if row.entropy <= high]
        return Trigger(name, (high, _exceeded_by(low, allowed)))
    threshold = _exceeded_by([VALUES[name](row) for row in rows], allowed)
    return None if name == "ratio" and threshold >= 1.0 else Trigger(name, (threshold,))


def share_of(trigger: Trigger, answers: Answers) -> float:
    """Return the share of the rows at which a trigger fires."""
    fired = [trigger.fires(row) for answer in answers for row in answer]
    return sum(fired) / len(fired) if fired else 0.0


def section(
    served_model: str, branch: Sequence[Tuned], entropix: Sequence[Tuned], remarks: Sequence[str]
) -> str:
    """Return the `parameters` of a configuration file for one served model, as YAML.

    Args:
        served_model: its name.
        branch: of rows of greedy answers, which `branch` continues by.
        entropix: of rows that were drawn, as `entropix` draws.
        remarks: how it was measured; comments of the file.
    """
    parameters: dict[str, Any] = {
        "branch": {"thresholds": {finding.trigger.name: _value(finding) for finding in branch}}
    }
    for finding in entropix:
        if finding.trigger.name == QUADRANT:
            high, spread = finding.trigger.thresholds
            parameters["entropix"] = {"entropy_threshold": high, "varentropy_threshold": spread}
    told = [_told("branch", finding) for finding in branch]
    told += [_told("entropix explores:", finding) for finding in entropix if finding.trigger.name == QUADRANT]
    comments = "".join(f"# {line}\n" for line in (*remarks, *told))
    return comments + yaml.safe_dump({"parameters": {served_model: parameters}}, sort_keys=False)


def _told(sampler: str, finding: Tuned) -> str:
    shares = f"{finding.share:.1%} of the measured rows, {finding.held_out:.1%} of those of other prompts"
    return f"{sampler} {finding.trigger.name} fires at {shares}"


def _value(finding: Tuned) -> float | list[float]:
    thresholds = finding.trigger.thresholds
    return thresholds[0] if len(thresholds) == 1 else list(thresholds)


def _exceeded_by(values: Sequence[float], allowed: int) -> float:
    """The smallest threshold, at least 0, that at most `allowed` values exceed; NaN exceeds nothing."""
    numbers = np.sort([value for value in values if not math.isnan(value)])[::-1]
    return _rounded(max(0.0, float(numbers[allowed]))) if allowed < len(numbers) else 0.0


def _rounded(value: float) -> float:
    """Up, so that no further value is above it."""
    return math.ceil(value * 10**DECIMALS) / 10**DECIMALS
