"""Experiments as flags: the JSON that flagd's evaluator assigns by. Pure; flagd hashes, nothing here does.

Three kinds of flags, all of them strings that are split by unit: `<experiment>` says a unit's arm,
`namespace.<name>` which experiment of a namespace it belongs to, `holdout.<name>` whether it is held out.
A flag's key is the salt of its split, so the three are independent, and so are two experiments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from sglang_power.experiments.model import WHOLE, Experiment

HELD, NOT_HELD = "held", "not_held"
"""Values of a holdout's flag."""

NOBODY = "-"
"""Value of a namespace's flag for units that no experiment has; no experiment can be called so."""

Range: TypeAlias = tuple[str, int]
"""Variant and width in basis points; a variant may have several ranges."""


def namespace_key(name: str) -> str:
    """The flag of a namespace."""
    return f"namespace.{name}"


def holdout_key(name: str) -> str:
    """The flag of a holdout."""
    return f"holdout.{name}"


def flag_set(experiments: Iterable[tuple[Experiment, int]]) -> dict[str, Any]:
    """All flags of a directory, as flagd reads them.

    Args:
        experiments: with the phase that each is in; names are unique, ranges of a namespace apart, shares of
            a holdout the same (`catalogue` checks it).
    """
    running = list(experiments)
    flags = {each.name: _flag(arm_ranges(each, phase), _salt(each)) for each, phase in running}
    for each, _ in running:
        if each.holdout is not None:
            share = each.holdout.share
            flags[holdout_key(each.holdout.name)] = _flag([(HELD, share), (NOT_HELD, WHOLE - share)])
    for name in {each.namespace.name for each, _ in running if each.namespace is not None}:
        flags[namespace_key(name)] = _flag(_owners(name, [each for each, _ in running]))
    return {"flags": flags}


def arm_ranges(experiment: Experiment, phase: int) -> list[Range]:
    """Which units have which arm in a phase.

    The first phase lays arms side by side in order of their names, so that their order in the file means
    nothing. Each later phase is made from the one before by `reweighted`.
    """
    ranges = [*sorted(experiment.weights(0).items())]
    for later in range(1, phase + 1):
        ranges = reweighted(ranges, experiment.weights(later))
    return _merged(ranges)


def reweighted(ranges: Sequence[Range], weights: Mapping[str, int]) -> list[Range]:
    """Ranges for other weights that move the fewest units: from shrinking arms to growing ones only.

    Args:
        ranges: those so far.
        weights: variant -> its new basis points; the same variants and the same sum.
    """
    change = {name: weights[name] - _width(ranges, name) for name in sorted(weights)}
    spare = {name: -by for name, by in change.items() if by < 0}
    wanted = {name: by for name, by in change.items() if by > 0}
    result: list[Range] = []
    for name, width in ranges:
        given = min(width, spare.get(name, 0))
        result.append((name, width - given))
        if given:
            spare[name] -= given
            result += _handed_out(given, wanted)
    return _merged(result)


def _width(ranges: Sequence[Range], name: str) -> int:
    return sum(width for other, width in ranges if other == name)


def _handed_out(width: int, wanted: dict[str, int]) -> list[Range]:
    """Give a range to those who want some, in order; what they get is taken off `wanted`."""
    result: list[Range] = []
    for name, want in wanted.items():
        taken = min(width, want)
        result.append((name, taken))
        wanted[name] -= taken
        width -= taken
    return result


def _merged(ranges: Iterable[Range]) -> list[Range]:
    """Without empty ranges, neighbours of one variant as one."""
    result: list[Range] = []
    for name, width in ranges:
        if result and result[-1][0] == name:
            result[-1] = (name, result[-1][1] + width)
        elif width:
            result.append((name, width))
    return result


def _owners(name: str, experiments: Iterable[Experiment]) -> list[Range]:
    """Which experiment of a namespace has which units."""
    spaces = [(each.namespace, each.name) for each in experiments if each.namespace is not None]
    inside = sorted((space.first, space.last, owner) for space, owner in spaces if space.name == name)
    ranges: list[Range] = []
    end = 0
    for first, last, owner in inside:
        ranges += [(NOBODY, first - end), (owner, last - first)]
        end = last
    return _merged([*ranges, (NOBODY, WHOLE - end)])


def _salt(experiment: Experiment) -> list[Any]:
    """What is hashed beside flagd's own choice, [flag key, targeting key].

    The targeting key of a switchback is the number of a window, which every pool counts alike; the pool's
    name keeps pools with an experiment of the same name apart.
    """
    if experiment.switchback is None:
        return []
    pool = f"/{experiment.switchback.pool}/"
    return [{"cat": [{"var": "$flagd.flagKey"}, pool, {"var": "targetingKey"}]}]


def _flag(ranges: Sequence[Range], bucket_by: Sequence[Any] = ()) -> dict[str, Any]:
    """A flag without a default: whoever is not in a range is answered with the reason DEFAULT."""
    return {
        "state": "ENABLED",
        "variants": {name: name for name, _ in ranges},
        "targeting": {"fractional": [*bucket_by, *([name, width] for name, width in ranges)]},
    }
