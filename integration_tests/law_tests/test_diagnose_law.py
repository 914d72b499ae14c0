"""What the bounds of `sglang-power diagnose` cover on exact models, and how far above the distance they are.

The chains are the running code's, the distances exact. Coverage is asked for at every number of steps, in 20
repetitions of 64 pairs; a coverage of 95% falls short of what is asked with probability 1e-4 at each.
"""

from __future__ import annotations

import numpy as np
import pytest
from coupled_chains import (
    CASES,
    coverage,
    exact_distances,
    fewest_covering,
    maker,
    repeated,
    run_pairs,
)

REPETITIONS, REPLICAS, STEPS = 20, 64, 24


@pytest.mark.parametrize("name", CASES)
def test_the_bounds_cover_the_exact_distance(name: str) -> None:
    model, config = CASES[name]
    pairs = run_pairs(maker(model, config), STEPS, STEPS, REPETITIONS * REPLICAS, seed=1)
    repetitions = repeated(pairs, REPLICAS)
    exact = exact_distances(model, config, STEPS)
    covered = coverage(repetitions, exact)
    for t in (8, 16, 24):
        bound = float(np.median([each[t] for each in repetitions]))
        print(f"{name}: t {t}, exact {exact[t]:.3f}, median bound {bound:.3f}, covered {covered[t]:.2f}")
    assert min(covered) >= fewest_covering(REPETITIONS)
