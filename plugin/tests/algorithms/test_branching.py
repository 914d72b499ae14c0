"""Branching on an exact model: every tree is compared with one that is grown naively from the table."""

from __future__ import annotations

from typing import Any

import pytest
from naive_tree import SEEDS, L, config, greedy, leaves, model, naive_beam, naive_lookahead, naive_tree
from sglang_power.algorithms.branching import best

# --- trees --------------------------------------------------------------------------------------------

CAPS: list[dict[str, Any]] = [
    {},
    {"k": 3},
    {"max_depth": 2},
    {"max_branches": 7},
    {"min_gap": 3},
    {"k": 4, "max_depth": 2, "min_gap": 2},
    {"trigger": "jump", "thresholds": (0.2,), "max_depth": 4},
    {"trigger": "quantile", "thresholds": (0.6,), "max_depth": 4},
]


@pytest.mark.parametrize("caps", CAPS, ids=str)
@pytest.mark.parametrize("seed", SEEDS)
async def test_the_tree_is_the_enumerated_one(seed: int, caps: dict[str, Any]) -> None:
    conf = config(**{"max_branches": 10_000, "max_depth": 5} | caps, policy="tree")
    assert sorted(await leaves(seed, conf)) == sorted(naive_tree(conf, model(seed)))


@pytest.mark.parametrize("caps", CAPS, ids=str)
def test_every_cap_cuts_some_tree(caps: dict[str, Any]) -> None:
    """So that the test above can fail: without the cap the trees are others."""
    free = {"max_branches": 10_000, "max_depth": 5}
    for name in caps.keys() - {"trigger", "thresholds"}:
        less = {key: value for key, value in (free | caps).items() if key != name or key in free}
        less |= {name: free[name]} if name in free else {}
        trees = [[naive_tree(config(**one), model(seed)) for seed in SEEDS] for one in (free | caps, less)]
        assert trees[0] != trees[1], name


@pytest.mark.parametrize("lookahead", [1, 3, 20])
@pytest.mark.parametrize("seed", SEEDS)
async def test_lookahead_takes_the_branch_of_the_best_rollout(seed: int, lookahead: int) -> None:
    conf = config(k=3, lookahead=lookahead, max_branches=12)
    assert await leaves(seed, conf) == [naive_lookahead(conf, model(seed))]


def test_lookahead_differs_from_greedy_and_with_its_length() -> None:
    answers = {
        length: [naive_lookahead(config(k=3, lookahead=length), model(seed)) for seed in SEEDS]
        for length in (1, 3, 20)
    }
    assert answers[1] == [greedy(model(seed), (), L) for seed in SEEDS]
    assert answers[3] != answers[1]
    assert answers[20] != answers[3]


@pytest.mark.parametrize("beam", [1, 3, 100])
@pytest.mark.parametrize("seed", SEEDS)
async def test_beam_keeps_the_best_paths(seed: int, beam: int) -> None:
    conf = config(policy="beam", beam=beam, max_depth=4, max_branches=10_000)
    assert sorted(await leaves(seed, conf)) == sorted(naive_beam(conf, model(seed)))


def test_the_best_are_kept_in_their_order_and_the_first_of_equal_ones() -> None:
    assert best([1.0, None, 3.0, 3.0, 2.0], 2) == [2, 3]
    assert best([2.0, 3.0, 3.0], 1) == [1]
    assert best([None, None], 1) == [0]


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_beam_stays_narrow_under_every_cap(seed: int) -> None:
    for max_branches in (2, 4, 8, 16):
        conf = config(policy="beam", beam=2, max_branches=max_branches)
        assert 1 <= len(await leaves(seed, conf)) <= 2
