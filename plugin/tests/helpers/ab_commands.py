"""What tests of `sglang-power ab ...` start from: an experiment's file, and a log of ten days ago."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import yaml
from ab_lines import BEFORE, Lines, experiment
from sglang_power.experiments.versions import config_hash

RAMP = [
    {"weights": {"plain": 5000, "power": 5000}, "min_hours": 0.0, "min_units": 10},
    {"weights": {"plain": 5000, "power": 5000}},
]
EXPOSURE = f"{1:012x}40008{0:015x}"
"""A request of the log's first unit, without feedback."""


def written(directory: Path, name: str = "power-vs-plain", **changes: Any) -> Path:
    """An experiment's file."""
    directory.mkdir(exist_ok=True)
    path = directory / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**BEFORE, "name": name, **changes}))
    return path


def logged(tmp_path: Path, units: int = 40, phase: int = 0, **changes: Any) -> Path:
    """A log of ten days ago."""
    log, began = Lines(config=config_hash(experiment(**changes), phase)), time.time() - 10 * 86_400.0
    for number in range(units):
        log.request(f"u{number}", ("plain", "power")[number % 2], began + number, phase=phase)
    log.enrol("u0", "plain", began, phase=phase, exposure_id=EXPOSURE)
    return log.write(tmp_path / "log")
