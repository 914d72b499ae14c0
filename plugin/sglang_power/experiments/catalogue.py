"""The experiments of a directory, as they are now: `*.yaml` with their `*.state.json`.

A file that cannot be used at the start ends the process; later it leaves the last good one in force. Several
experiments may run at once; a request joins the first one, in order of their names, that it is eligible for
and whose namespace has its unit.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import ValidationError

from sglang_power.errors import ConfigError, RequestError
from sglang_power.experiments.model import Arm, Experiment, Namespace
from sglang_power.experiments.records import Change
from sglang_power.experiments.state import State, read_state, state_path
from sglang_power.experiments.versions import Versions, config_hash, legacy_hash, phases_of, rules_hash
from sglang_power.yaml_files import YamlFile, loc_of, read_yaml

Check: TypeAlias = Callable[[Experiment, Arm], None]
"""Raises RequestError where this server cannot run an arm's sampler; its field is one of the sampler's."""


Standing = Literal["loaded", "killed", "draining"]


@dataclass(frozen=True)
class Loaded:
    """One experiment in force.

    Args:
        experiment: its file.
        config: `config_hash` of it, in the phase where it stands.
        state: where it stands.
    """

    experiment: Experiment
    config: str
    state: State

    @property
    def phase(self) -> int:
        """The phase of its ramp, from 0."""
        return self.state.phase

    @property
    def enrolling(self) -> bool:
        """Whether requests may join it."""
        return not (self.experiment.kill or self.state.killed)

    @property
    def standing(self) -> Standing:
        """What its requests, and the analysis of them, can expect."""
        if not self.enrolling:
            return "killed"
        return "draining" if self.experiment.drain else "loaded"


def unchecked(_experiment: Experiment, _arm: Arm) -> None:
    """The Check of those who know no server: every sampler passes."""


def read_experiment(path: Path, check: Check = unchecked) -> Experiment:
    """Read and validate one experiment's file.

    Args:
        check: see Check.

    Raises:
        ConfigError: with file, line and field.
    """
    return _read(path, check).experiment


class Catalogue:
    """All experiments of a directory.

    Args:
        directory: of the files.
        check: see Check.

    Raises:
        ConfigError: no such directory, or a file that cannot be used; with file, line and field.
    """

    def __init__(self, directory: Path, check: Check) -> None:
        self.directory = directory
        self.experiments: tuple[Loaded, ...] = ()
        self.changes: tuple[Change, ...] = ()
        self.begun_anew: tuple[str, ...] = ()
        self._check = check
        self._files: dict[Path, _File] = {}
        self._states: dict[Path, State] = {}
        if problems := self.reload():
            raise ConfigError("\n".join(problems))

    def reload(self) -> list[str]:
        """Read the directory again.

        `experiments` is the new snapshot, in order of names; `changes` says how it differs from the last one,
        and `begun_anew` which experiments were edited so that their data so far count no longer.
        A file and its state stand each for itself: a rollback takes effect beside a bad edit of the file.

        Returns:
            What is wrong; what it concerns stays as it was, or out where it was not in yet.
        """
        self.changes = self.begun_anew = ()
        try:
            paths = sorted(path for path in self.directory.iterdir() if path.suffix == ".yaml")
        except OSError as error:
            return [f"{self.directory}: {error}"]
        problems: list[str] = []
        kept = {path: self._files[path] for path in paths if path in self._files}
        self._files = _settled(kept, self._read(paths, problems), problems)
        states = {path: self._state(path, problems) for path in self._files}
        self._states = {path: state for path, state in states.items() if state is not None}
        now = [_loaded(self._files[path].experiment, state) for path, state in self._states.items()]
        now.sort(key=lambda loaded: loaded.experiment.name)
        self.changes = _changes(self.experiments, now)
        self.begun_anew = _begun_anew(self.experiments, now)
        self.experiments = tuple(now)
        return problems

    def _read(self, paths: Iterable[Path], problems: list[str]) -> dict[Path, _File]:
        """The files that are right, each for itself."""
        good: dict[Path, _File] = {}
        for path in paths:
            try:
                good[path] = _read(path, self._check)
            except ConfigError as error:
                problems.append(str(error))
        return good

    def _state(self, path: Path, problems: list[str]) -> State | None:
        """The state of a file; where it cannot be used the one before, if that fits."""
        phases = phases_of(self._files[path].experiment)
        try:
            state = read_state(state_path(path))
            if state.phase < phases:
                return state
            problem = f"{state_path(path)}, field 'phase': {state.phase}, but {path} has {phases} phases"
        except ConfigError as error:
            problem = str(error)
        problems.append(problem)
        before = self._states.get(path)
        return before if before and before.phase < phases else None


@dataclass(frozen=True)
class _File:
    file: YamlFile
    experiment: Experiment


def _read(path: Path, check: Check) -> _File:
    file = read_yaml(path)
    try:
        experiment = Experiment.model_validate_json(file.json())
    except ValidationError as error:
        raise file.refused(error) from error
    for i, arm in enumerate(experiment.arms):
        try:
            check(experiment, arm)
        except RequestError as error:
            raise file.at(("arms", i, "sampler", *loc_of(error.field)), str(error)) from error
    return _File(file, experiment)


def _loaded(experiment: Experiment, state: State) -> Loaded:
    return Loaded(experiment, config_hash(experiment, state.phase), state)


def _settled(
    kept: Mapping[Path, _File], fresh: Mapping[Path, _File], problems: list[str]
) -> dict[Path, _File]:
    """All fresh files where they fit together; else those that fit with what is in force, one by one."""
    together = {**kept, **fresh}
    if _clash(together.values()) is None:
        return together
    result = dict(kept)
    for path, file in fresh.items():
        others = [other for at, other in result.items() if at != path]
        if (clash := _clash([*others, file])) is None:
            result[path] = file
        else:
            problems.append(str(clash))
    return result


def _clash(files: Iterable[_File]) -> ConfigError | None:
    """Of two experiments that cannot be in one directory, at the later one."""
    for earlier, other in itertools.combinations(files, 2):
        if (where := _disagreement(earlier.experiment, other.experiment)) is not None:
            loc, problem = where
            return other.file.at(loc, f"{problem} in {earlier.file.path}")
    return None


def _disagreement(earlier: Experiment, other: Experiment) -> tuple[Sequence[str], str] | None:
    """Where the other experiment contradicts the earlier one, and how."""
    if earlier.name == other.name:
        return ["name"], f"{earlier.name!r} is also the name of the experiment"
    first, second = earlier.namespace, other.namespace
    if first and second and first.name == second.name and _overlap(first, second):
        taken = f"units [{first.first}, {first.last}) of namespace {first.name!r}"
        return ["namespace", "first"], f"{taken} belong to the experiment {earlier.name!r}"
    held, kept = earlier.holdout, other.holdout
    if held and kept and held.name == kept.name and held.share != kept.share:
        return ["holdout", "share"], f"holdout {held.name!r} has a share of {held.share}"
    return None


def _overlap(earlier: Namespace, other: Namespace) -> bool:
    return earlier.first < other.last and other.first < earlier.last


def _changes(before: Iterable[Loaded], after: Iterable[Loaded]) -> tuple[Change, ...]:
    """How a snapshot differs from the one before it, as lines of the log."""
    old = {each.experiment.name: each for each in before}
    new = {each.experiment.name: each for each in after}
    changed = [each for name, each in new.items() if name not in old or _stand(each) != _stand(old[name])]
    gone = [each for name, each in old.items() if name not in new]
    return tuple(
        [_change(each, each.standing) for each in changed] + [_change(each, "removed") for each in gone]
    )


def _stand(loaded: Loaded) -> tuple[str, int, Standing, str]:
    return loaded.config, loaded.phase, loaded.standing, rules_hash(loaded.experiment)


def _begun_anew(before: Iterable[Loaded], after: Iterable[Loaded]) -> tuple[str, ...]:
    """Names of experiments whose lines so far are of another version now."""
    old = {each.experiment.name: each for each in before}
    return tuple(
        each.experiment.name
        for each in after
        if (was := old.get(each.experiment.name)) is not None
        and not Versions(each.experiment).accepts(was.config, was.phase)
    )


def _change(loaded: Loaded, why: Standing | Literal["removed"]) -> Change:
    return Change(
        at=time.time(),
        experiment=loaded.experiment.name,
        config=loaded.config,
        phase=loaded.phase,
        enrolling=why in ("loaded", "draining"),
        why=why,
        rules=rules_hash(loaded.experiment),
        legacy=legacy_hash(loaded.experiment),
    )
