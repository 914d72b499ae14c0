"""The gate: intervals, looked at after every unit, may ever miss the truth in 5% of the runs and no more.

In A/A tests, where the truth is no difference, and where one arm is a multiple of the other. A cell fails
where an exact binomial test rejects "misses have a chance of at most 0.05". Family-wise error over the cells:
0.01 (Bonferroni). With 600 runs a cell whose chance is 0.10 fails with probability 0.90. Seeds are fixed.
Controls that are known to be wrong must fail the same gate.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from ab_experiments import experiment, weighted
from scipy.stats import binom, binomtest
from sglang_power.experiments.analysis import sequences
from sglang_power.experiments.analysis.observations import Column, Mask
from sglang_power.experiments.analysis.sequences import ConfidenceSequence, sequence
from sglang_power.experiments.analysis.traffic import Assumptions, draw
from sglang_power.types import FloatArray
from ville import AsymptoticABTest, BettingABTest, BettingTest

ALPHA = 0.05
RUNS = 600
CORRELATION = 0.3


@dataclass(frozen=True)
class Cell:
    """One kind of A/A experiment.

    Args:
        propensity: chance of the arm.
        rate: of the event per request.
        clustered: heavy-tailed numbers of requests per unit, correlated; else one each.
    """

    propensity: float
    rate: float
    clustered: bool

    @property
    def slow(self) -> bool:
        """Rare events in a small arm wait longest for enough units."""
        return self.propensity < 0.5 and self.rate != 0.5

    def __str__(self) -> str:
        return f"{self.propensity:g}-{self.rate:g}-{'clustered' if self.clustered else 'single'}"

    @property
    def units(self) -> int:
        """Enough for asymptotic intervals in most runs."""
        if self.rate == 0.5:
            return 2_500 if self.propensity == 0.5 else 4_000
        return 5_000 if self.propensity == 0.5 else (30_000 if self.clustered else 12_000)

    def runs(self, units: int, runs: int = RUNS) -> Iterator[tuple[Column, Mask]]:
        """Units of A/A experiments: events and requests of each, and who had the arm."""
        for run in range(runs):
            random = np.random.default_rng([run, CELLS.index(self)])
            treated = random.random(units) < self.propensity
            yield self._column(units, random), treated

    def _column(self, units: int, random: np.random.Generator) -> Column:
        if not self.clustered:
            return Column((random.random(units) < self.rate).astype(float), np.ones(units))
        counts = 1 + np.minimum(2.0 * random.pareto(2.2, units), 200.0).astype(int)
        k = 1.0 / CORRELATION - 1.0
        rates = random.beta(self.rate * k, (1.0 - self.rate) * k, units)
        return Column(random.binomial(counts, rates).astype(float), counts.astype(float))


CELLS = [Cell(*cell) for cell in itertools.product((0.5, 0.1), (0.5, 0.02, 0.98), (False, True))]
SKEWED: dict[str, Callable[[np.random.Generator, int], FloatArray]] = {
    "lognormal": lambda random, units: random.lognormal(0.0, 1.0, units),
    "pareto": lambda random, units: random.pareto(2.5, units),
}


@dataclass(frozen=True)
class Scaled:
    """An arm whose values are a multiple of the control's.

    Args:
        law: of the control's values, or "tokens": requests of the simulated traffic, as a ratio metric.
        factor: the arm's values are so many times the control's.
        propensity: chance of the arm.
        units: of a run.
    """

    law: str
    factor: float
    propensity: float
    units: int

    def __str__(self) -> str:
        return f"{self.law}-x{self.factor:g}-{self.propensity:g}"

    @property
    def truth(self) -> float:
        """The difference of the means."""
        return (self.factor - 1.0) * LAWS[self.law][1]

    def misses(self, runs: int) -> Misses:
        """Look at so many runs after every unit."""
        found = Misses()
        for run in range(runs):
            column, treated = self._drawn(np.random.default_rng([run, SCALED.index(self)]))
            found.count(
                sequence(column, treated, propensity=self.propensity, bounds=None, alpha=ALPHA), self.truth
            )
        return found

    def _drawn(self, random: np.random.Generator) -> tuple[Column, Mask]:
        if self.law == "tokens":
            weights = {"plain": 10_000 - round(10_000 * self.propensity)}
            weights["power"] = 10_000 - weights["plain"]
            tested = experiment(arms=weighted(weights), metrics=TOKENS, pool="separate", **PRIMARY)
            lift = {"tokens": self.truth}
            drawn = draw(
                tested, Assumptions(base={"tokens": 1.0}, lift=lift, units=self.units), weights, random
            )
            return drawn.columns["tokens"], drawn.in_arms("power")
        treated = random.random(self.units) < self.propensity
        values = LAWS[self.law][0](random, self.units)
        return Column(values * np.where(treated, self.factor, 1.0)), treated


@dataclass
class Misses:
    """Runs whose intervals ever missed.

    Args:
        shown: by an interval that was shown.
        above, below: by a lower bound above the truth, by an upper bound below it.
        decisive: by an interval that may be decided by.
        known: runs that had an interval at the end.
    """

    shown: int = 0
    above: int = 0
    below: int = 0
    decisive: int = 0
    known: int = 0

    def count(self, found: ConfidenceSequence, truth: float) -> None:
        """Add a run."""
        assert found.enough is not None
        above, below = found.low > truth, found.high < truth
        missed = above | below
        settled = found.enough.smallest >= found.enough.needed_to_decide
        self.shown += bool(missed.any())
        self.above += bool(above.any())
        self.below += bool(below.any())
        self.decisive += bool((missed & settled).any())
        self.known += bool(np.isfinite(found.low[-1]))


TOKENS = {"tokens": {"source": "tokens"}}
PRIMARY = {"primary": {"metric": "tokens", "min_effect": 0.01}}
LAWS: dict[str, tuple[Callable[[np.random.Generator, int], FloatArray], float]] = {
    "exponential": (lambda random, units: random.exponential(1.0, units), 1.0),
    "lognormal": (SKEWED["lognormal"], math.exp(0.5)),
    "pareto": (SKEWED["pareto"], 1.0 / 1.5),
    "heavy": (lambda random, units: random.lognormal(0.0, 1.5, units), math.exp(1.125)),
    "tokens": (SKEWED["lognormal"], 1.0),
}
SCALED = [
    Scaled("lognormal", 10.0, 0.5, 6_000),
    Scaled("lognormal", 0.1, 0.5, 6_000),
    Scaled("lognormal", 3.0, 0.1, 9_000),
    Scaled("lognormal", 1.0, 0.1, 9_000),
    Scaled("exponential", 10.0, 0.5, 4_000),
    Scaled("exponential", 3.0, 0.1, 8_000),
    Scaled("pareto", 3.0, 0.1, 9_000),
    Scaled("tokens", 3.0, 0.1, 8_000),
]
HEAVY = Scaled("heavy", 10.0, 0.5, 6_000)
"""Beyond what a shown interval copes with: skewness 33."""
SCALED.append(HEAVY)
TESTS = 2 * len(CELLS) + len(SKEWED) + len(SCALED)
LEVEL = 0.01 / TESTS


def rejected(false_positives: int, runs: int) -> bool:
    """Whether the gate fails."""
    return bool(binomtest(false_positives, runs, ALPHA, alternative="greater").pvalue < LEVEL)


def excludes(found: ConfidenceSequence) -> bool:
    """Whether "no effect" was outside of the interval after any unit."""
    return bool(((found.low > 0.0) | (found.high < 0.0)).any())


class Capital:
    """What the grid of candidate effects tends to at "no effect": the capital of that candidate itself.

    It excludes no later than any grid does, and costs a thousandth. (The grid takes the larger of two
    capitals, this one their mean; Theorem 3 allows both.)
    """

    def __init__(self, reach: float, alpha: float) -> None:
        self._reach, self._enough = reach, -math.log(alpha)
        self._test = BettingTest(0.0, bounds=(-reach, reach), alpha=alpha)

    def update(self, outcomes: FloatArray) -> None:
        self._test.update(outcomes)

    @property
    def upper_(self) -> FloatArray:
        return np.full(self._test.n_, self._reach)

    @property
    def lower_(self) -> FloatArray:
        excluded = np.maximum.accumulate(self._test.log_e_values_) >= self._enough
        return np.where(excluded, self._reach, -self._reach)


class CapitalABTest(BettingABTest):  # type: ignore[misc]
    def _make_cs(self) -> Capital:
        low, high = self.bounds
        return Capital((high - low) / min(self.propensity, 1.0 - self.propensity), self.alpha)


def betting(column: Column, treated: Mask, cell: Cell, resolution: int = 250) -> ConfidenceSequence:
    assert column.counts is not None
    means = Column(column.values / column.counts)
    return sequence(
        means,
        treated,
        propensity=cell.propensity,
        bounds=(0.0, 1.0),
        alpha=ALPHA,
        resolution=resolution,
    )


def asymptotic(column: Column, treated: Mask, cell: Cell) -> ConfidenceSequence:
    """Clustered units as a ratio metric, single requests as a plain one."""
    fed = column if cell.clustered else Column(column.values)
    return sequence(fed, treated, propensity=cell.propensity, bounds=None, alpha=ALPHA)


def test_the_gate_has_power_against_twice_the_rate() -> None:
    fails_from = next(k for k in range(RUNS) if rejected(k, RUNS))
    assert binom.sf(fails_from - 1, RUNS, 0.10) > 0.90


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_betting_sequences(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences, "BettingABTest", CapitalABTest)
    false = sum(excludes(betting(*run, cell)) for run in cell.runs(1_500))
    assert not rejected(false, RUNS), f"{false} of {RUNS}"


@pytest.mark.parametrize("propensity", [0.5, 0.1])
def test_the_grid_excludes_no_earlier_than_its_limit(
    propensity: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = Cell(propensity, 0.5, clustered=False)
    random = np.random.default_rng(3)
    for _ in range(8):
        treated = random.random(1_500) < propensity
        values = (random.random(1_500) < 0.3 + 0.4 * treated).astype(float)
        column = Column(values, np.ones(1_500))
        grid = betting(column, treated, cell, resolution=2_500)
        with monkeypatch.context() as patched:
            patched.setattr(sequences, "BettingABTest", CapitalABTest)
            limit = betting(column, treated, cell)
        first = [int(np.argmax(found.low > 0.0)) for found in (limit, grid)]
        assert 0 < first[0] <= first[1] < first[0] + 40


@pytest.mark.parametrize(
    "cell",
    [pytest.param(cell, id=str(cell), marks=[pytest.mark.long] if cell.slow else []) for cell in CELLS],
)
def test_asymptotic_sequences(cell: Cell) -> None:
    false = known = 0
    for run in cell.runs(cell.units):
        found = asymptotic(*run, cell)
        false += excludes(found)
        known += bool(np.isfinite(found.low[-1]))
    assert not rejected(false, RUNS), f"{false} of {RUNS}"
    assert known > RUNS / 2


def skewed(law: str, cell: Cell, runs: int) -> Iterator[tuple[Column, Mask]]:
    for run in range(runs):
        random = np.random.default_rng([run, 99])
        yield Column(SKEWED[law](random, 8_000)), random.random(8_000) < cell.propensity


@pytest.mark.parametrize("law", SKEWED)
def test_skewed_metrics_without_bounds(law: str) -> None:
    """At 90/10, where rare large values reach the small arm late."""
    cell = Cell(0.1, 0.5, clustered=False)
    false = known = 0
    for run in skewed(law, cell, RUNS):
        found = asymptotic(*run, cell)
        false += excludes(found)
        known += bool(np.isfinite(found.low[-1]))
    assert not rejected(false, RUNS), f"{false} of {RUNS}"
    assert known > RUNS / 2


@pytest.mark.parametrize(
    "scaled",
    [
        pytest.param(scaled, id=str(scaled), marks=[] if scaled == SCALED[0] else [pytest.mark.long])
        for scaled in SCALED
        if scaled != HEAVY
    ],
)
def test_arms_of_another_scale(scaled: Scaled) -> None:
    """Above all the upper bound of an arm that costs more, which is what tells how much more."""
    found = scaled.misses(RUNS)
    assert not rejected(found.shown, RUNS), f"{found}"
    assert found.known > RUNS / 2


def test_intervals_to_decide_by_cover_heavier_tails_than_those_that_are_shown() -> None:
    found = HEAVY.misses(RUNS)
    assert not rejected(found.decisive, RUNS), f"{found}"
    assert found.decisive < found.shown


def per_request(column: Column, treated: Mask) -> tuple[Column, Mask]:
    """Wrong: every request a row of its own, though the unit was randomised."""
    assert column.counts is not None
    counts = column.counts.astype(int)
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    values = (place < np.repeat(column.values, counts)).astype(float)
    return Column(values, np.ones(len(values))), np.repeat(treated, counts)


def z_test(column: Column, treated: Mask) -> bool:
    """Wrong: a z-test at every unit from the hundredth on."""
    n, k = np.cumsum(treated), np.cumsum(~treated)
    with np.errstate(divide="ignore", invalid="ignore"):
        p, q = np.cumsum(column.values * treated) / n, np.cumsum(column.values * ~treated) / k
        z = (p - q) / np.sqrt(p * (1.0 - p) / n + q * (1.0 - q) / k)
    return bool((np.abs(z[100:]) > 1.96).any())


Look = Callable[[Column, Mask], bool]


def test_requests_as_rows_fail_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    cell, single = Cell(0.5, 0.5, clustered=True), Cell(0.5, 0.5, clustered=False)
    monkeypatch.setattr(sequences, "BettingABTest", CapitalABTest)
    looks: list[Look] = [
        lambda column, treated: excludes(betting(*per_request(column, treated), single)),
        lambda column, treated: excludes(asymptotic(*per_request(column, treated), single)),
    ]
    for look in looks:
        assert rejected(sum(look(*run) for run in cell.runs(1_500, 200)), 200)


def test_a_peeked_z_test_fails_the_gate() -> None:
    cell = Cell(0.5, 0.5, clustered=False)
    assert rejected(sum(z_test(*run) for run in cell.runs(1_500, 200)), 200)


def test_one_centre_and_no_skewness_fails_the_gate() -> None:
    """The textbook sequence, shown from the same units on."""
    scaled = SCALED[0]

    def misses(run: int) -> bool:
        column, treated = scaled._drawn(np.random.default_rng([run, 0]))
        known = sequence(column, treated, propensity=0.5, bounds=None, alpha=ALPHA).enough
        assert known is not None
        test = AsymptoticABTest(alpha=ALPHA, propensity=0.5).fit(column.values, treated)
        return bool((known.mask & ((test.lower_ > scaled.truth) | (test.upper_ < scaled.truth))).any())

    assert rejected(sum(misses(run) for run in range(400)), 400)


def test_intervals_before_there_is_enough_fail_the_gate() -> None:
    cell = Cell(0.1, 0.02, clustered=False)

    def hasty(column: Column, treated: Mask) -> bool:
        test = AsymptoticABTest(alpha=ALPHA, propensity=cell.propensity).fit(column.values, treated)
        return test.stopping_time() is not None

    assert rejected(sum(hasty(*run) for run in cell.runs(5_000, 200)), 200)
    assert rejected(sum(hasty(*run) for run in skewed("pareto", cell, 400)), 400)
