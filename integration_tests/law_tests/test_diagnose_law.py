"""What the bounds of `sglang-power diagnose` cover on exact models, and how far above the distance they are.

The chains are the running code's, the distances exact. Coverage is asked for at every number of steps, in 60
repetitions of 25 pairs; a coverage of 95% falls short of what is asked with probability 1e-4 at each.
"""

from __future__ import annotations

import numpy as np
import pytest
from coupled_chains import (
    CASES,
    LAG,
    REPLICAS,
    STEPS,
    bounds_of,
    coverage,
    exact_distances,
    fewest_covering,
    maker,
    run_pairs,
)

REPETITIONS = 60


@pytest.mark.parametrize("name", CASES)
def test_the_bounds_cover_the_exact_distance(name: str) -> None:
    model, config = CASES[name]
    pairs = run_pairs(maker(model, config), LAG, STEPS, REPETITIONS * REPLICAS, seed=1)
    exact = exact_distances(model, config, STEPS)
    covered = coverage(pairs, exact)
    repetitions = [bounds_of(pairs[at : at + REPLICAS]) for at in range(0, len(pairs), REPLICAS)]
    for t in (0, STEPS // 2, STEPS):
        bound = float(np.median([each[t] for each in repetitions]))
        print(f"{name}: t {t}, exact {exact[t]:.3f}, median bound {bound:.3f}, covered {covered[t]:.2f}")
    assert min(covered) >= fewest_covering(REPETITIONS)
