"""Which candidates there are: samplers with every combination of some values of their parameters. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from sglang_power.errors import ConfigError
from sglang_power.evaluation.arms import NAMES, Arm

Grid: TypeAlias = Mapping[str, Mapping[str, Sequence[Any]]]
"""Sampler -> parameter -> its values; null leaves a parameter at its default."""

DEFAULT: Final[Grid] = {
    "plain": {},
    "lowtemp": {},
    "greedy": {},
    "power": {
        "alpha": [2.0, 4.0],
        "proposal_temperature": [None, 1.0],
        "steps": [4, 16],
        "cut": ["uniform", "entropy"],
    },
    "smc": {"alpha": [2.0, 4.0], "particles": [8, 32]},
    "vote": {"samples": [8]},
    "best_of": {"samples": [8]},
}


def checked(told: Any) -> Grid:
    """Return a grid that a user wrote; single values are lists of one.

    Raises:
        ConfigError: it is no table of tables, names an unknown sampler, or a parameter without values.
    """
    if not isinstance(told, dict) or not told or not all(isinstance(each, dict) for each in told.values()):
        raise ConfigError(
            '--grid: a table by sampler is needed, e.g. {"power": {"steps": [4, 16]}, "plain": {}}'
        )
    for sampler in told:
        if sampler not in NAMES:
            raise ConfigError(f"--grid: unknown sampler {sampler!r}: choose among {', '.join(NAMES)}")
    grid = {
        sampler: {name: values if isinstance(values, list) else [values] for name, values in table.items()}
        for sampler, table in told.items()
    }
    for sampler, table in grid.items():
        for name, values in table.items():
            if not values:
                raise ConfigError(f"--grid: {sampler}.{name} has no values")
    return grid


def candidates(grid: Grid, bases: Sequence[Arm]) -> list[Arm]:
    """Return every combination, as arms that are asked once.

    Args:
        grid: the values.
        bases: an arm of every sampler that runs, with what fits the task.
    """
    return [
        base.model_copy(
            update={"name": _name(base.name, chosen), "samples": 1, "params": base.params | chosen}
        )
        for base in bases
        for chosen in _combinations(grid[base.sampler])
    ]


def _combinations(table: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    rows = itertools.product(*table.values())
    found = [dict(zip(table, row, strict=True)) for row in rows]
    return [{name: value for name, value in row.items() if value is not None} for row in found]


def _name(sampler: str, chosen: Mapping[str, Any]) -> str:
    told = ",".join(f"{name}={value}" for name, value in chosen.items())
    return f"{sampler}[{told}]" if told else sampler
