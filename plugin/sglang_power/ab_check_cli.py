"""The command `sglang-power ab check`: whether files are valid, and what an edit of one does to its data.

Raises what is wrong; `ab_cli` makes one line of it. What needs the extra `[ab]` is imported where it is used.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from sglang_power.errors import ConfigError

if TYPE_CHECKING:
    from sglang_power.experiments.model import Arm, Experiment
    from sglang_power.experiments.state import State

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_check(commands: Commands) -> None:
    """The options of `ab check`."""
    check = commands.add_parser("check", help="validate experiments, as far as no server is needed")
    check.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="files, or directories of them")
    check.add_argument("--log", type=Path, metavar="DIR", help="say what this log holds for the files")
    check.add_argument(
        "--before",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="the file as it was: say what the edit does to its data; repeat it",
    )
    check.set_defaults(run=run_check)


def run_check(options: argparse.Namespace) -> int:
    """Validate files, or all of a directory together; says what edits do, and what only a server can tell."""
    files = [(path, *found) for path in options.paths for found in _files(path)]
    before = earlier(options, {experiment.name for _, experiment, _ in files})
    for path, experiment, state in files:
        print(f"{path}: {experiment.name} is valid{_left_open(experiment)}")
        for told in _effects(experiment, state, before, options.log):
            print(f"{path}: {experiment.name}: {told}")
    return 0


def _files(path: Path) -> list[tuple[Experiment, State]]:
    """The experiment of a file, or those of a directory, with where they stand."""
    from sglang_power.experiments.catalogue import Catalogue, read_experiment
    from sglang_power.experiments.state import read_state, state_path

    if not path.is_dir():
        return [(read_experiment(path, _check_arm), read_state(state_path(path)))]
    found = [(each.experiment, each.state) for each in Catalogue(path, _check_arm).experiments]
    if not found:
        raise ConfigError(f"{path}: there is no *.yaml in it")
    return found


def _effects(
    experiment: Experiment, state: State, before: Sequence[Experiment], log: Path | None
) -> Iterator[str]:
    """What an edit does to data, and what a log holds for the file."""
    from sglang_power.experiments.analysis.edits import edited, standing

    mine = [each for each in before if each.name == experiment.name]
    for each in mine:
        yield from edited(each, experiment)
    if log is not None:
        yield from standing(log, experiment, state, time.time(), mine)


def earlier(options: argparse.Namespace, names: Set[str]) -> list[Experiment]:
    """Experiments as they were, of the option --before; each must be one of those that are asked about."""
    from sglang_power.experiments.catalogue import read_experiment

    found = [(path, read_experiment(path)) for path in options.before]
    for path, experiment in found:
        if experiment.name not in names:
            asked = ", ".join(sorted(names))
            raise ConfigError(f"--before {path}, field 'name': {experiment.name!r}, not {asked}")
    return [experiment for _, experiment in found]


def _check_arm(_experiment: Experiment, arm: Arm) -> None:
    from sglang_power.request.table import NO_SAMPLER, parse_request

    if "preset" not in arm.sampler and arm.sampler.get("sampler") != NO_SAMPLER:
        parse_request(arm.sampler)


def _left_open(experiment: Experiment) -> str:
    presets = [f"{arm.sampler['preset']!r}" for arm in experiment.arms if "preset" in arm.sampler]
    named = f" whether it has the presets {', '.join(presets)}," if presets else ""
    return f"; only a server knows{named} whether it supports every arm"
