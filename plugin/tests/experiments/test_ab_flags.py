"""How units are split: shares, independence, and who moves when weights change. flagd's evaluator decides.

Units are fixed names, so every test is deterministic. A chi-square test fails below p = 0.001: for other
names than these, each of the 28 would fail once in a thousand choices.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from ab_experiments import UNITS, experiment, weighted
from openfeature.contrib.tools.flagd.core import FlagdCore
from openfeature.evaluation_context import EvaluationContext
from scipy import stats
from sglang_power.experiments.flags import (
    HELD,
    NOBODY,
    NOT_HELD,
    arm_ranges,
    flag_set,
    holdout_key,
    namespace_key,
    reweighted,
)
from sglang_power.experiments.model import WHOLE, Experiment, Phase

ERROR = 0.001


def values(
    experiments: Iterable[tuple[Experiment, int]], flag: str, units: Sequence[str] = UNITS
) -> list[str]:
    """What flagd answers for each unit."""
    core = FlagdCore()
    core.set_flags(flag_set(experiments))
    return [core.resolve_string_value(flag, "", EvaluationContext(unit)).value for unit in units]


def arms(phase: int = 0, **changes: Any) -> list[str]:
    """Each unit's arm."""
    each = experiment(**changes)
    return values([(each, phase)], each.name)


def p_of_split(found: Sequence[str], weights: Mapping[str, int]) -> float:
    """Chi-square p value of the counts against the weights."""
    counts = Counter(found)
    assert counts.keys() <= weights.keys()
    expected = [weight / WHOLE * len(found) for weight in weights.values()]
    return float(stats.chisquare([counts[name] for name in weights], expected).pvalue)


def p_of_independence(one: Sequence[str], other: Sequence[str]) -> float:
    """Chi-square p value of their contingency table."""
    table = Counter(zip(one, other, strict=True))
    rows, columns = sorted(set(one)), sorted(set(other))
    return float(stats.chi2_contingency([[table[r, c] for c in columns] for r in rows]).pvalue)


def moved(before: Sequence[str], after: Sequence[str]) -> Counter[tuple[str, str]]:
    """(from, to) -> units that changed."""
    return Counter((a, b) for a, b in zip(before, after, strict=True) if a != b)


SPLITS = [
    {"a": 5000, "b": 5000},
    {"a": 9000, "b": 1000},
    {"a": 5000, "b": 3000, "c": 2000},
    {"a": 9900, "b": 100},
    {"a": 2500, "b": 2500, "c": 2500, "d": 2500},
]


@pytest.mark.parametrize("weights", SPLITS, ids=str)
@pytest.mark.parametrize("name", ["exp", "another", "a-third"])
def test_arms_get_their_weights(weights: dict[str, int], name: str) -> None:
    assert p_of_split(arms(name=name, arms=weighted(weights)), weights) > ERROR


def test_control_the_test_of_splits_sees_one_percent() -> None:
    found = arms(arms=weighted({"a": 5200, "b": 4800}))
    assert p_of_split(found, {"a": 5000, "b": 5000}) < ERROR


def test_an_arm_without_weight_gets_nobody_and_all_of_it_everybody() -> None:
    assert set(arms(arms=weighted({"a": 0, "b": WHOLE}))) == {"b"}


def test_shadow_arms_are_in_no_flag() -> None:
    shadow = {"name": "quiet", "sampler": {}, "weight": 0, "shadow": True}
    each = experiment(arms=[*weighted({"a": 5000, "b": 5000}), shadow], shadow={"tokens_per_hour": 1000})
    assert {name for name, _ in arm_ranges(each, 0)} == {"a", "b"}


def test_experiments_are_independent_of_each_other() -> None:
    assert p_of_independence(arms(name="exp"), arms(name="exq")) > ERROR


def test_control_the_test_of_independence_sees_one_salt() -> None:
    assert p_of_independence(arms(name="exp"), arms(arms=weighted({"a": 7000, "b": 3000}))) < ERROR


SPACED: dict[str, Any] = {
    "namespace": {"name": "chat", "first": 1000, "last": 6000},
    "holdout": {"name": "year", "share": 500},
}


def test_namespace_holdout_and_arms_are_independent() -> None:
    each = [(experiment(**SPACED), 0)]
    flags = [values(each, key) for key in ("exp", namespace_key("chat"), holdout_key("year"))]
    for one, other in itertools.combinations(flags, 2):
        assert p_of_independence(one, other) > ERROR


def test_a_namespace_excludes_and_leaves_the_rest_to_nobody() -> None:
    first = experiment(name="one", namespace={"name": "chat", "first": 0, "last": 2500})
    second = experiment(name="two", namespace={"name": "chat", "first": 6000, "last": WHOLE})
    owners = values([(second, 0), (first, 0)], namespace_key("chat"))
    assert p_of_split(owners, {"one": 2500, NOBODY: 3500, "two": 4000}) > ERROR


def test_a_further_experiment_of_a_namespace_moves_nobody_else() -> None:
    first = experiment(name="one", namespace={"name": "chat", "first": 0, "last": 2500})
    second = experiment(name="two", namespace={"name": "chat", "first": 6000, "last": WHOLE})
    alone = values([(first, 0)], namespace_key("chat"))
    together = values([(first, 0), (second, 0)], namespace_key("chat"))
    assert set(moved(alone, together)) == {(NOBODY, "two")}


def test_a_holdout_is_the_same_for_all_who_name_it() -> None:
    both = [(experiment(name=name, holdout={"name": "year", "share": 500}), 0) for name in ("one", "two")]
    held = values(both, holdout_key("year"))
    assert p_of_split(held, {HELD: 500, NOT_HELD: WHOLE - 500}) > ERROR
    assert held == values(both[:1], holdout_key("year"))


def test_the_order_of_arms_and_other_experiments_mean_nothing() -> None:
    forward = experiment(arms=weighted({"a": 5000, "b": 3000, "c": 2000}))
    backward = experiment(arms=weighted({"c": 2000, "b": 3000, "a": 5000}))
    other = experiment(name="other")
    assert values([(forward, 0)], "exp") == values([(other, 0), (backward, 0)], "exp")


def test_the_order_of_weights_in_a_phase_means_nothing() -> None:
    ranges = [("a", WHOLE)]
    weights = {"a": 5000, "b": 3000, "c": 2000}
    assert reweighted(ranges, weights) == reweighted(ranges, dict(reversed(weights.items())))


@pytest.mark.parametrize(
    ("before", "after"),
    [({"a": 5000, "b": 5000}, {"a": 3000, "b": 7000}), ({"a": 9900, "b": 100}, {"a": 9000, "b": 1000})],
)
def test_two_arms_that_are_edited_move_the_minimum(before: dict[str, int], after: dict[str, int]) -> None:
    changes = moved(arms(arms=weighted(before)), arms(arms=weighted(after)))
    assert set(changes) == {("a", "b")}
    assert changes["a", "b"] / len(UNITS) == pytest.approx((before["a"] - after["a"]) / WHOLE, abs=0.01)


RAMP: list[dict[str, Any]] = [
    {"weights": {"a": 9800, "b": 100, "c": 100}},
    {"weights": {"a": 8000, "b": 1000, "c": 1000}},
    {"weights": {"a": 4000, "b": 2000, "c": 4000}},
    {"weights": {"a": 4500, "b": 4500, "c": 1000}},
    {"weights": {"b": 2000, "a": 2000, "c": 6000}},
]
RAMPED = experiment(arms=weighted({"a": WHOLE, "b": 0, "c": 0})).model_copy(
    update={"ramp": tuple(Phase.model_validate(phase) for phase in RAMP)}
)
"""Its arms turn back, for which a file is refused; the layout has to be right all the same."""


def ramped(phase: int) -> list[str]:
    """Each unit's arm in a phase."""
    return values([(RAMPED, phase)], RAMPED.name)


@pytest.mark.parametrize("phase", range(1, len(RAMP)))
def test_a_ramp_moves_the_minimum_from_shrinking_arms_to_growing_ones(phase: int) -> None:
    old, new = RAMP[phase - 1]["weights"], RAMP[phase]["weights"]
    changes = moved(ramped(phase - 1), ramped(phase))
    least = sum(max(0, new[name] - old[name]) for name in old) / WHOLE
    assert sum(changes.values()) / len(UNITS) == pytest.approx(least, abs=0.01)
    for source, target in changes:
        assert new[source] < old[source], source
        assert new[target] > old[target], target


@pytest.mark.parametrize("phase", range(len(RAMP)))
def test_every_phase_of_a_ramp_has_its_weights(phase: int) -> None:
    assert p_of_split(ramped(phase), RAMP[phase]["weights"]) > ERROR


def test_control_neighbours_in_one_layout_move_more_than_the_minimum() -> None:
    """What a ramp of three arms would cost without `reweighted`."""
    old, new = RAMP[1]["weights"], RAMP[2]["weights"]
    changes = moved(arms(arms=weighted(old)), arms(arms=weighted(new)))
    assert sum(changes.values()) / len(UNITS) > 0.4 + 0.05


def test_exact_widths_of_random_reweightings() -> None:
    """Every step of 200 has the weights it should, and takes from shrinking arms only; seed 0."""
    rng = np.random.default_rng(0)
    names = [*"abcde"]
    ranges = [("a", WHOLE)]
    for _ in range(200):
        cuts = [0, *sorted(rng.integers(0, WHOLE + 1, size=4).tolist()), WHOLE]
        weights = {name: cuts[i + 1] - cuts[i] for i, name in enumerate(names)}
        after = reweighted(ranges, weights)
        widths = {name: sum(width for other, width in after if other == name) for name in names}
        assert widths == weights
        least = sum(max(0, weights[n] - sum(w for o, w in ranges if o == n)) for n in names)
        assert sum(a != b for a, b in zip(spread(ranges), spread(after), strict=True)) == least
        ranges = after


def spread(ranges: Iterable[tuple[str, int]]) -> list[str]:
    """Who has each of the 10,000 places."""
    return [name for name, width in ranges for _ in range(width)]


def test_pools_of_one_switchback_have_windows_of_their_own() -> None:
    windows = [str(i) for i in range(4000)]

    def of(pool: str) -> list[str]:
        each = experiment(kind="switchback", unit=None, switchback={"pool": pool, "window_s": 600.0})
        return values([(each, 0)], "exp", windows)

    assert p_of_split(of("east"), {"plain": 5000, "power": 5000}) > ERROR
    assert p_of_independence(of("east"), of("west")) > ERROR


def test_a_unit_without_a_range_is_not_given_a_default() -> None:
    """Traps of flagd: without a targeting key it answers, too."""
    core = FlagdCore()
    core.set_flags(flag_set([(experiment(), 0)]))
    details = core.resolve_string_value("exp", "nothing", EvaluationContext())
    assert (details.value, details.variant, details.reason) == ("nothing", None, "DEFAULT")
