"""Versions of an experiment's file: which edits leave the data what they are, and which begin anew.

Shared by the server, which writes the version into every line, and by `check`, `report` and `ramp`, which
count lines by it: they agree because all of them ask here. Knows neither files nor logs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from sglang_power.experiments.model import Experiment
from sglang_power.experiments.records import Change

ASSIGNS = {"name", "kind", "unit", "eligibility", "namespace", "holdout", "on_error", "switchback"}
"""Fields that change who is enrolled, with which arm, or what is answered; beside arms and weights."""

JUDGES = {"primary", "guardrails", "alpha", "minimum_run", "outcome_window_h", "completion_grace_s"}
"""Fields that change how the same data are judged; beside metrics and controls."""

ADDED = {"kill", "drain", "completion_grace_s"}
"""What `legacy_hash` leaves out: `kill`, and fields that are younger than it."""


def config_hash(experiment: Experiment, phase: int = 0) -> str:
    """Return the hash of what assigns units and serves them in a phase, as lines of the log carry it.

    It covers ASSIGNS, the arms' samplers, and the weights of this phase and of those before it, from which
    its assignment is made. Neither owner, hypothesis, metrics, thresholds, `kill`, `drain`, testers, budgets
    of shadows nor later phases are in it, nor how a value is written (4 or 4.0, defaults, order of arms).
    """
    parts = experiment.model_dump(mode="json", include=ASSIGNS, exclude_defaults=True)
    if experiment.switchback is not None:
        parts["switchback"].pop("min_windows", None)
    if experiment.unit is not None and experiment.unit.header is not None:
        parts["unit"]["header"] = experiment.unit.header.lower()
    parts["eligibility"] = {
        field: sorted(value) if isinstance(value, list) else value
        for field, value in parts.get("eligibility", {}).items()
    }
    arms = sorted(experiment.arms, key=lambda arm: arm.name)
    parts["arms"] = [[arm.name, arm.sampler, arm.shadow] for arm in arms]
    parts["weights"] = [experiment.weights(each) for each in range(phase + 1)]
    return _hashed(parts)


def rules_hash(experiment: Experiment) -> str:
    """Return the hash of what judges the data: metrics, controls and JUDGES."""
    parts = experiment.model_dump(mode="json", include=JUDGES, exclude_defaults=True)
    parts["metrics"] = {
        name: {"source": metric.source, **metric.model_dump(mode="json", exclude_defaults=True)}
        for name, metric in experiment.metrics.items()
    }
    parts["controls"] = {arm.name: arm.control for arm in experiment.arms}
    if experiment.switchback is not None:
        parts["min_windows"] = experiment.switchback.min_windows
    return _hashed(parts)


def legacy_hash(experiment: Experiment) -> str:
    """Return what the first releases wrote into lines: a hash of the whole file but `kill`, in all phases."""
    return _digest(experiment.model_dump(mode="json", exclude=ADDED))


def phases_of(experiment: Experiment) -> int:
    """Return the number of phases; an experiment without a ramp has one."""
    return max(1, len(experiment.ramp))


class Versions:
    """The versions of lines that count for a file: its own, and older names of the same assignment.

    Args:
        experiment: the file as it is now.
        before: earlier contents of it; their legacy hashes count in the phases that they assign alike.
    """

    def __init__(self, experiment: Experiment, before: Iterable[Experiment] = ()) -> None:
        self._own = [config_hash(experiment, phase) for phase in range(phases_of(experiment))]
        self._legacy = {legacy_hash(experiment): len(self._own)}
        for earlier in before:
            self._learn(legacy_hash(earlier), self._alike(earlier))

    def learn(self, change: Change) -> None:
        """Take from a server's line what the file it had loaded was called by the first releases."""
        known = change.phase < len(self._own) and change.config == self._own[change.phase]
        if change.legacy is not None and known:
            self._learn(change.legacy, change.phase + 1)

    def accepts(self, config: str, phase: int) -> bool:
        """Whether a line of a version and a phase counts."""
        own = phase < len(self._own) and config == self._own[phase]
        return own or phase < self._legacy.get(config, 0)

    def _learn(self, legacy: str, phases: int) -> None:
        self._legacy[legacy] = max(phases, self._legacy.get(legacy, 0))

    def _alike(self, earlier: Experiment) -> int:
        """How many first phases the file as it was assigns alike; a phase's hash covers those before it."""
        both = min(len(self._own), phases_of(earlier))
        return sum(config_hash(earlier, phase) == self._own[phase] for phase in range(both))


def _hashed(parts: dict[str, Any]) -> str:
    return _digest(_plain(parts))


def _digest(values: Any) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of canonical JSON."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """Numbers that are whole as integers, however they were written."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
