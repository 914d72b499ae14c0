"""Experiments for tests, as files would say them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from sglang_power.experiments.catalogue import Loaded
from sglang_power.experiments.model import Experiment
from sglang_power.experiments.state import State
from sglang_power.experiments.versions import config_hash

UNITS = [f"user-{i}" for i in range(20_000)]
"""Fixed names, so that every count of a test is the same in every run."""

PLAIN: dict[str, Any] = {"name": "plain", "sampler": {"sampler": "none"}, "weight": 5000, "control": "plain"}
POWER: dict[str, Any] = {"name": "power", "sampler": {"sampler": "power", "alpha": 2.0}, "weight": 5000}

THUMBS: dict[str, Any] = {"source": "feedback", "low": 0.0, "high": 1.0, "absent": 0.0}


SPACED: dict[str, Any] = {
    "namespace": {"name": "chat", "first": 0, "last": 5000},
    "holdout": {"name": "year", "share": 1000},
}


def document(**changes: Any) -> dict[str, Any]:
    """The values of an experiment's file, 50/50 unless changed; a change of None leaves the key out."""
    values: dict[str, Any] = {
        "name": "exp",
        "owner": "team",
        "hypothesis": "power sampling gets more thumbs up",
        "unit": {"header": "x-user"},
        "arms": [PLAIN, POWER],
        "metrics": {"thumbs": THUMBS},
        "primary": {"metric": "thumbs", "min_effect": 0.01},
    }
    return {key: value for key, value in {**values, **changes}.items() if value is not None}


def weighted(weights: dict[str, int]) -> list[dict[str, Any]]:
    """Arms of these names and weights; the first is the control."""
    return [
        {**PLAIN, "name": name, "weight": weight, "control": None if i else "plain"}
        for i, (name, weight) in enumerate(weights.items())
    ]


def experiment(**changes: Any) -> Experiment:
    """A validated experiment; see `document`."""
    return Experiment.model_validate_json(json.dumps(document(**changes)))


def loaded(phase: int = 0, **changes: Any) -> Loaded:
    """The same as a catalogue has it."""
    each = experiment(**changes)
    return Loaded(each, config_hash(each), State(phase=phase))


def write(directory: Path, file: str | None = None, **changes: Any) -> Path:
    """Its file, called by its name unless told otherwise."""
    values = document(**changes)
    path = directory / f"{file or values['name']}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path
