"""Successive halving on simulated candidates: who is kept, what is spent. Simulations have fixed seeds."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from scipy import stats
from sglang_power.errors import ConfigError
from sglang_power.evaluation.arms import Arm
from sglang_power.sampler_tuning import grid
from sglang_power.sampler_tuning.halving import (
    Plan,
    Score,
    State,
    answered,
    error_bound,
    halved,
    next_items,
    ranked,
    rounds_of,
    without,
)

Answer = Callable[[str, int], tuple[bool, int]]
"""A candidate and a problem -> whether the answer is right, and its tokens."""


def run(plan: Plan, state: State, answer: Answer) -> tuple[State, list[int], int]:
    """A whole run: its end, problems asked by the end of each round, and the dearest step."""
    by_round, dearest = [], 0
    while len(state.alive) > 1:
        while items := next_items(plan, state):
            before = state.spent
            state = step(state, items, answer)
            dearest = max(dearest, state.spent - before)
        by_round.append(state.item)
        state = halved(state)
    return state, by_round, dearest


def step(state: State, items: int, answer: Answer) -> State:
    asked = range(state.item, state.item + items)
    told = {name: [answer(name, item) for item in asked] for name in state.alive}
    found = {
        name: Score(sum(right for right, _ in answers), items, sum(tokens for _, tokens in answers))
        for name, answers in told.items()
    }
    return answered(state, items, found)


def constant(name: str, item: int) -> tuple[bool, int]:
    return item % 10 < int(name), 10 * int(name)


def test_the_best_is_found_as_often_as_stated() -> None:
    """Eight candidates, the best one 0.4 better: 400 runs, as many errors as the bound allows at most."""
    shares = dict(zip("abcdefgh", [0.3, 0.3, 0.4, 0.8, 0.4, 0.2, 0.1, 0.4], strict=True))
    plan = Plan(items=1000, budget=8 * 40 * 3 * 10, rounds=3, answers=16)
    errors = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)

        def answer(name: str, _: int, rng: np.random.Generator = rng) -> tuple[bool, int]:
            return rng.random() < shares[name], 10

        end, by_round, _ = run(plan, State(tuple(shares)), answer)
        errors += end.alive != ("d",)
    assert by_round == [40, 120, 280]
    bound = error_bound(8, 0.4, by_round)
    assert bound < 0.1
    assert errors <= stats.binom.ppf(0.9999, 400, bound)


def test_control_without_a_difference_the_first_one_is_no_better_than_others() -> None:
    plan = Plan(items=1000, budget=4 * 20 * 2 * 10, rounds=2, answers=16)
    found = []
    for seed in range(200):
        rng = np.random.default_rng(seed)

        def answer(*_: object, rng: np.random.Generator = rng) -> tuple[bool, int]:
            return rng.random() < 0.5, 10

        end, _, _ = run(plan, State(tuple("abcd")), answer)
        found.append(end.alive[0])
    assert found.count("a") < 100
    assert error_bound(4, 0.0, [20, 60]) == 1.0


def test_constant_prices_spend_no_more_than_there_is() -> None:
    plan = Plan(items=10_000, budget=20_000, rounds=3, answers=16)
    end, by_round, _ = run(plan, State(tuple("12345")), constant)
    assert end.alive == ("5",)
    assert end.spent <= plan.budget
    assert end.spent > plan.budget - 3 * 150, "and nearly all of it"
    assert by_round == sorted(by_round)
    assert [score.tokens for score in end.scores.values()] == [
        10 * int(name) * score.asked for name, score in end.scores.items()
    ]
    assert sum(score.tokens for score in end.scores.values()) == end.spent


@given(
    prices=some.lists(some.integers(1, 500), min_size=2, max_size=9),
    budget=some.integers(1, 50_000),
    items=some.integers(1, 60),
    answers=some.integers(1, 32),
    seed=some.integers(0, 2**32),
)
def test_the_budget_is_kept_but_for_one_step(
    prices: list[int], budget: int, items: int, answers: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)

    def answer(name: str, _: int) -> tuple[bool, int]:
        return bool(rng.integers(2)), int(rng.integers(1, 2 * prices[int(name)] + 1))

    plan = Plan(items, budget, rounds_of(len(prices)), answers)
    end, _, dearest = run(plan, State(tuple(map(str, range(len(prices))))), answer)
    assert len(end.alive) == 1
    assert end.item <= items
    assert end.spent <= max(budget, 0) + dearest


def test_more_right_answers_come_first_then_fewer_tokens_then_the_order() -> None:
    scores = {"a": Score(3, 4, 90), "b": Score(3, 4, 80), "c": Score(4, 4, 900), "d": Score(3, 4, 90)}
    state = State(tuple(scores), scores=scores)
    assert ranked(state) == ["c", "b", "a", "d"]
    assert halved(state).alive == ("b", "c")
    assert without(state, ["c"]).alive == ("a", "b", "d")
    assert halved(without(state, ["c"])).alive == ("a", "b"), "of three, two go on"


def test_problems_that_run_out_end_the_round() -> None:
    plan = Plan(items=3, budget=10**9, rounds=1, answers=100)
    state = step(State(("1", "2")), next_items(plan, State(("1", "2"))), constant)
    assert (state.item, next_items(plan, state)) == (1, 2)
    state = step(state, 2, constant)
    assert next_items(plan, state) == 0


@pytest.mark.parametrize(("candidates", "rounds"), [(2, 1), (3, 2), (4, 2), (5, 3), (25, 5)])
def test_rounds_leave_one(candidates: int, rounds: int) -> None:
    assert rounds_of(candidates) == rounds
    for _ in range(rounds):
        candidates = math.ceil(candidates / 2)
    assert candidates == 1


# --- the grid ---


def test_a_grid_is_every_combination_on_top_of_what_fits_the_task() -> None:
    bases = [Arm(name="power", sampler="power", params={"sampler": "power", "block_size": 8}, samples=3)]
    told = grid.checked({"power": {"alpha": [2.0, 4.0], "proposal_temperature": [None, 1.0], "steps": 7}})
    found = grid.candidates(told, bases)
    assert [arm.name for arm in found] == [
        "power[alpha=2.0,steps=7]",
        "power[alpha=2.0,proposal_temperature=1.0,steps=7]",
        "power[alpha=4.0,steps=7]",
        "power[alpha=4.0,proposal_temperature=1.0,steps=7]",
    ]
    assert found[1].params == {
        "sampler": "power",
        "block_size": 8,
        "alpha": 2.0,
        "proposal_temperature": 1.0,
        "steps": 7,
    }
    assert {arm.samples for arm in found} == {1}


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ([], "a table by sampler"),
        ({"power": [1]}, "a table by sampler"),
        ({"pwoer": {}}, "unknown sampler 'pwoer'"),
        ({"power": {"steps": []}}, "power.steps has no values"),
    ],
)
def test_a_grid_that_is_none_is_told(told: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        grid.checked(told)
