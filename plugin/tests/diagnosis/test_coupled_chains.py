"""Lagged coupled chains on exact models: the law of each chain, and what their bounds cover.

Bounds cover in 95% of repetitions at every t by construction. What is asked for is the share that so many
repetitions fall short of with probability 1e-4; laws are held against G-tests at 1e-4 each.
"""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from coupled_chains import (
    CASES,
    LAG,
    REPLICAS,
    STEPS,
    TRAP,
    TRAPPED,
    bounds_of,
    coverage,
    exact_distances,
    fewest_covering,
    law_after,
    maker,
    repeated,
    run_on,
    run_pairs,
    trap_model,
)
from exact import g_test, target
from sglang_power.algorithms.coupling import CoupledPair, Move, Place, moved, moves
from sglang_power.diagnosis.session import Maker
from sglang_power.rng import Key

ERROR = 1e-4


def test_the_bounds_cover_the_exact_distance() -> None:
    pairs = run_pairs(maker(TRAP, TRAPPED), LAG, STEPS, 12 * REPLICAS)
    exact = exact_distances(TRAP, TRAPPED, STEPS)
    assert exact[0] > 0.5, "the chain begins far away"
    assert min(coverage(repeated(pairs), exact)) >= fewest_covering(12)
    assert bounds_of(pairs)[-1] < 2.5 * exact[-1] + 0.1, "and they are not idle"


def test_control_a_lag_that_is_not_applied_does_not_cover() -> None:
    """The follower's step t repeats the leader's step t: they are one chain, and together at once."""
    pairs = [
        dataclasses.replace(pair, leader=pair.leader[:1] * (LAG + 1), follower=pair.leader[:1])
        for pair in run_pairs(maker(TRAP, TRAPPED), LAG, STEPS, 2 * REPLICAS)
    ]
    assert min(coverage(repeated(pairs), exact_distances(TRAP, TRAPPED, STEPS))) < fewest_covering(12)


def test_control_a_follower_that_copies_its_leader_is_no_chain() -> None:
    """It makes the pair meet at once, and the bound cover nothing; its law is another one, too."""
    make = maker(TRAP, TRAPPED)
    pairs = copying_pairs(make, 8 * REPLICAS)
    assert min(coverage(repeated(pairs), exact_distances(TRAP, TRAPPED, STEPS))) < fewest_covering(12)
    followers = [pair.follower[-1].ids for pair in pairs]
    assert g_test(followers, law_after(TRAP, TRAPPED, 1)) < ERROR


def copying_pairs(make: Maker, count: int) -> list[CoupledPair]:
    """Control: pairs whose follower takes its leader's answer for its own, from the first coupled step on."""

    async def run(key: Key) -> CoupledPair:
        pair = CoupledPair(LAG, STEPS)
        while not pair.is_over:
            places = [await make(move) for move in moves(key, pair)]
            copied = len(places) == 2 and pair.leader
            pair = moved(pair, (places[0], places[0]) if copied else tuple(places))
        return pair

    async def all_of_them() -> list[CoupledPair]:
        return [await run(Key(0, number)) for number in range(count)]

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("name", ["trap", "entropy cuts"])
def test_each_chain_of_a_pair_has_the_law_of_the_chain_alone(name: str) -> None:
    model, config = CASES[name]
    pairs = run_on(maker(model, config), 3, 2, 300)
    assert g_test([pair.leader[-1].ids for pair in pairs], law_after(model, config, 5)) > ERROR
    assert g_test([pair.follower[-1].ids for pair in pairs], law_after(model, config, 2)) > ERROR
    assert g_test([pair.leader[0].ids for pair in pairs], law_after(model, config, 0)) > ERROR
    met = [pair for pair in pairs if pair.leader[3].ids == pair.follower[0].ids]
    assert met, "some meet at once"
    assert all(a.ids == b.ids for pair in met for a, b in zip(pair.leader[3:], pair.follower, strict=True))


def test_control_the_law_test_tells_steps_apart() -> None:
    pairs = run_on(maker(TRAP, TRAPPED), 3, 2, 300)
    assert g_test([pair.follower[-1].ids for pair in pairs], law_after(TRAP, TRAPPED, 5)) < ERROR


def test_what_no_chain_has_found_is_not_seen() -> None:
    """The limit of such bounds: an answer of most of the mass that hardly any chain finds, 1 step in 200."""
    hidden = trap_model(0.02, vocab=5, horizon=4)
    config = dataclasses.replace(TRAPPED, alpha=8.0, horizon=4, block_size=4)
    pairs = run_pairs(maker(hidden, config), LAG, STEPS, REPLICAS)
    found_by_then = 0.02 * (1 + (1 + STEPS) / 4)
    at_least = target(hidden, config)[1, 1, 1, 1] - found_by_then
    assert at_least > 0.8
    assert bounds_of(pairs)[-1] < at_least


async def test_a_pair_asks_for_shared_seeds_from_the_lag_on() -> None:
    """Every seed of a chain is new to it; behind the lag both chains have the same ones."""
    asked: list[tuple[int, tuple[int, ...] | None]] = []
    counter = iter(range(100))
    pair, key = CoupledPair(lag=3, steps=2), Key(5, 1)
    while not pair.is_over:
        made = moves(key, pair)
        asked += [(move.seed, move.before) for move in made]
        pair = moved(pair, tuple(Place((next(counter),), 0.0) for _ in made))
    assert pair.meeting is None
    assert (len(pair.leader), len(pair.follower)) == (6, 3)
    first, second, *alone = [seed for seed, _ in asked[:5]]
    assert len({first, second, *alone}) == 5
    coupled = asked[5:]
    assert [seed for seed, _ in coupled[::2]] == [seed for seed, _ in coupled[1::2]]
    assert not {seed for seed, _ in coupled} & {first, second, *alone}
    assert Move(alone[0], (0,)) == moves(key, dataclasses.replace(pair, leader=pair.leader[:1]))[0]
