"""Units that were there in earlier phases of a ramp: who is kept, so that the arms stay comparable."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ab_experiments import weighted
from ab_lines import CONFIG, HOUR, Lines, experiment
from pydantic import ValidationError
from sglang_power.experiments.analysis.report import report
from sglang_power.experiments.analysis.requests import Scope, joined
from sglang_power.experiments.analysis.srm import srm
from sglang_power.experiments.analysis.units import Population, kept_shares, population
from sglang_power.experiments.flags import arm_ranges
from sglang_power.experiments.model import WHOLE, Experiment, Phase

RAMP = [
    {"weights": {"plain": 9000, "power": 1000}},
    {"weights": {"plain": 5000, "power": 5000}},
    {"weights": {"plain": 5000, "power": 5000}},
]
NAMES = random.Random(5).sample([f"u{number:04d}" for number in range(2000)], 2000)
"""In an order of their own, so that the arms alternate in order of names, as they do in order of arrival."""


def read(log: Path, phase: int) -> tuple[Population, dict[str, int]]:
    """Who is analysed in a phase, and why others are not."""
    found = joined(log, Scope(experiment(ramp=RAMP), CONFIG, phase, 100 * HOUR))
    people = population(found)
    return people, dict(found.excluded + people.excluded)


def test_units_that_moved_are_out_of_the_statistics_but_in_the_sample_ratio(tmp_path: Path) -> None:
    log = Lines()
    log.request("moved", "plain", 0.0)
    log.request("stayed", "power", 0.0)
    for unit, arm in [("moved", "power"), ("stayed", "power"), ("new", "plain")]:
        log.request(unit, arm, 10.0, phase=1)
    people, reasons = read(log.write(tmp_path), 1)
    assert [unit.name for unit in people.enrolled] == ["moved", "new", "stayed"]
    assert [unit.name for unit in people.kept] == ["new", "stayed"]
    assert reasons == {"moved_units": 1}
    first, nothing = read(tmp_path, 0)
    assert [unit.name for unit in first.kept] == ["moved", "stayed"]
    assert nothing == {}


@pytest.mark.parametrize(
    ("phases", "phase", "shares"),
    [
        ([1], 1, {"plain": 1.0, "power": 1.0}),
        ([1, 2], 2, {"plain": 1.0, "power": 1.0}),
        ([0, 1], 1, {"plain": 0.2, "power": 1.0}),
        ([0, 1, 2], 2, {"plain": 0.2, "power": 1.0}),
    ],
)
def test_which_share_of_the_returning_units_is_kept(
    phases: list[int], phase: int, shares: dict[str, float]
) -> None:
    assert kept_shares(experiment(ramp=RAMP), phases, phase) == pytest.approx(shares)


def test_an_arm_that_starts_from_nothing_has_no_returning_units() -> None:
    ramp = [{"weights": {"plain": 10_000, "power": 0}}, {"weights": {"plain": 5000, "power": 5000}}]
    assert kept_shares(experiment(ramp=ramp), [0, 1], 1) == {"plain": 0.0, "power": 0.0}
    assert kept_shares(experiment(ramp=ramp), [0], 0) == {"plain": 1.0, "power": 0.0}


@pytest.fixture
def ramped(tmp_path: Path) -> Path:
    """Phase 0 at 90/10, phase 1 at 50/50, 2,000 units in both: 1,000 stay plain, 200 power, 800 move."""
    log = Lines()
    for number, unit in enumerate(NAMES):
        log.enrol(unit, "plain" if number < 1800 else "power", 0.0)
        log.enrol(unit, "plain" if number < 1000 else "power", 10.0, phase=1)
    return log.write(tmp_path)


def test_the_arms_keep_the_weights_of_the_phase_among_returning_units(ramped: Path) -> None:
    """Of the 1,000 a fifth is kept, each by a coin of its own name: fixed, so there is no error rate."""
    people, reasons = read(ramped, 1)
    arms = np.asarray(people.observations.arms)
    assert reasons["moved_units"] == 800
    assert np.sum(arms == "power") == 200
    assert np.sum(arms == "plain") == pytest.approx(200, abs=3 * np.sqrt(160))
    assert reasons["returning_units"] == 1000 - np.sum(arms == "plain")
    again, _ = read(ramped, 1)
    assert [unit.name for unit in again.kept] == [unit.name for unit in people.kept]


def test_the_sample_ratio_is_judged_by_all_units_of_the_phase(ramped: Path) -> None:
    found = report(ramped, Scope(experiment(ramp=RAMP), CONFIG, 1, 100 * HOUR))
    assert found.srm.units == {"plain": 1000, "power": 1000}
    assert not found.srm.red
    assert found.units < 500


def test_control_without_the_coin_the_sample_ratio_of_the_analysed_would_be_off(ramped: Path) -> None:
    people, _ = read(ramped, 1)
    stayed = [unit.arm for unit in people.enrolled if unit.name not in NAMES[1000:1800]]
    assert srm(stayed, {"plain": 5000, "power": 5000}).red
    assert not srm([unit.arm for unit in people.kept], {"plain": 5000, "power": 5000}).red


def layouts(tested: Experiment) -> list[np.ndarray[Any, Any]]:
    """Per phase, who has each of the 10,000 places."""
    phases = range(len(tested.ramp))
    return [np.concatenate([[name] * width for name, width in arm_ranges(tested, n)]) for n in phases]


def kept_of(
    tested: Experiment, seen: Sequence[int], places: Sequence[np.ndarray[Any, Any]]
) -> dict[str, float]:
    """How many of the units that were seen in some phases are kept, if each place has one."""
    last = seen[-1]
    stayed = np.all([places[phase] == places[last] for phase in seen], axis=0)
    shares = kept_shares(tested, seen, last)
    return {arm: share * float(np.sum(stayed & (places[last] == arm))) for arm, share in shares.items()}


def random_ramp(chance: random.Random) -> list[dict[str, dict[str, int]]]:
    """Two to five arms, two to five phases; in a third of the ramps every arm may both grow and shrink."""
    names = [*"abcde"[: chance.randint(2, 5)]]
    grow = names if chance.random() < 0.3 else chance.sample(names, chance.randint(1, len(names) - 1))
    shrink = [name for name in names if name not in grow] or names
    drawn = Counter(chance.choices(names, k=100))
    weights = {name: WHOLE // 100 * drawn[name] for name in names}
    ramp = [{"weights": dict(weights)}]
    for _ in range(chance.randint(1, 4)):
        for name in chance.sample(shrink, chance.randint(1, len(shrink))):
            given = chance.randint(0, weights[name])
            weights[name] -= given
            weights[chance.choice(grow)] += given
        ramp.append({"weights": dict(weights)})
    return ramp


def accepted(ramp: list[dict[str, dict[str, int]]]) -> tuple[Experiment, bool]:
    """An experiment with a ramp, and whether its file may have it."""
    arms = weighted(ramp[0]["weights"])
    try:
        return experiment(arms=arms, ramp=ramp), True
    except ValidationError:
        return experiment(arms=arms).model_copy(
            update={"ramp": tuple(Phase.model_validate(phase) for phase in ramp)}
        ), False


def test_of_all_ramps_that_are_accepted_the_arms_keep_their_weights_among_returning_units() -> None:
    """Against the layout that units are really assigned by; 150 ramps, seed 0, exact but for rounding.

    Control: the same check finds ramps among the refused ones whose returning units are at other weights.
    """
    chance, right, wrong = random.Random(0), Counter[bool](), 0
    for _ in range(150):
        ramp = random_ramp(chance)
        tested, fits = accepted(ramp)
        places, last = layouts(tested), len(ramp) - 1
        seen = [*sorted(chance.sample(range(last), chance.randint(1, last))), last]
        kept = kept_of(tested, seen, places)
        expected = {arm: sum(kept.values()) * weight / WHOLE for arm, weight in tested.weights(last).items()}
        if fits:
            assert kept == pytest.approx(expected, abs=1e-6), (ramp, seen)
            right[sum(kept.values()) > 0] += 1
        else:
            wrong += kept != pytest.approx(expected, abs=1.0)
    assert right[True] > 50
    assert wrong > 10
