"""`power` with method="auto": trials first, then perfect or a chain; every way to an answer has the same law.

Fixed seeds on the exact language model: each run repeats its outcome. The G-tests would fail with probability
1e-3 each for fresh seeds.
"""

from __future__ import annotations

import math
from typing import Any

import exact
import numpy as np
import pytest
from exact_tools import ExactTools
from perfect_cases import SteppingEngine
from selection_cases import LastDigit
from sglang_power.algorithms import perfect
from sglang_power.algorithms.perfect import AFFORDABLE, PerfectConfig
from sglang_power.engines.tabular import Prefix, TabularModel
from sglang_power.request import PowerRequest, parse_request
from sglang_power.request.power import TRIAL_WIDTH
from sglang_power.rng import Key
from sglang_power.samplers.base import Outcome
from sglang_power.samplers.budgets import Budget
from sglang_power.samplers.power import PowerSampler

MODEL = exact.NARROW
L = MODEL.horizon
AUTO = {"sampler": "power", "method": "auto"}


async def run(seed: int, model: TabularModel = MODEL, budget: Budget = exact.AMPLE, **values: Any) -> Outcome:
    request = parse_request({**AUTO, **values})
    assert isinstance(request, PowerRequest)
    tools = ExactTools(SteppingEngine(model), LastDigit(), Key(seed), model.horizon, budget=budget)
    return await PowerSampler().run(request, tools)


def way(outcome: Outcome) -> str:
    """How an answer came about."""
    index = outcome.report["accepted_trial"]
    if index is None:
        assert outcome.law == "power"
        return "chain"
    assert outcome.law == "perfect"
    return "first" if index < TRIAL_WIDTH else "further"


async def test_an_accepted_trial_is_always_the_answer_and_its_law_is_told() -> None:
    outcome = await run(3, alpha=1.2)
    assert (way(outcome), outcome.params["method"]) == ("first", "auto")
    assert "steps" not in outcome.report
    assert "fallback_reason" not in outcome.report


async def test_the_chain_is_a_choice_and_no_fallback() -> None:
    outcome = await run(3, alpha=8.0, steps=4)
    assert way(outcome) == "chain"
    assert (
        outcome.report["trials"] == (1 + AFFORDABLE) * TRIAL_WIDTH or outcome.report["trials"] == TRIAL_WIDTH
    )
    assert outcome.report["steps"] == 4
    assert "fallback_reason" not in outcome.report


@pytest.mark.parametrize(("mean", "more"), [(1.01 / 128, True), (0.99 / 128, False), (0.0, False)])
def test_the_bound_decides_at_eight_times_the_width(mean: float, more: bool) -> None:
    config = PerfectConfig(4.0, 8, 144, 16, weighs=True)
    weights = [-math.inf] * 15 + [-math.inf if mean == 0 else math.log(16 * mean)]
    assert perfect.worth_more(config, weights) == more


async def test_hopeless_targets_go_to_the_chain_after_the_first_trials() -> None:
    """Uniform rows of 64 tokens at alpha 4: each z is -12.5, so that no trial has a second token."""
    flat = TabularModel(lambda _: np.full(64, 1 / 64), horizon=4)
    for seed in range(5):
        outcome = await run(seed, flat, alpha=4.0, steps=1)
        assert (way(outcome), outcome.report["trials"]) == ("chain", TRIAL_WIDTH)


async def test_every_way_to_an_answer_has_the_law_that_it_tells() -> None:
    """At this alpha each way answers often: accepted trials with p^alpha, chains with the law of N steps.

    A decision that kept or dropped trials by their answers would show in the first two.
    """
    config = exact.make_config(MODEL, alpha=2.5, block_size=L, steps=3)
    pi, chain = exact.target(MODEL, config), exact.chain_law(MODEL, config)
    returned: dict[str, list[Prefix]] = {"first": [], "further": [], "chain": []}
    for seed in range(350):
        outcome = await run(seed, alpha=2.5, steps=3, block_size=L)
        returned[way(outcome)].append(outcome.tokens.ids)
    for name, law in (("first", pi), ("further", pi), ("chain", chain)):
        assert len(returned[name]) > 25
        assert exact.g_test(returned[name], law) > 1e-3
    assert exact.g_test(returned["first"] + returned["further"], chain) < 1e-3


@pytest.mark.parametrize("tokens", [L, 2 * L, 5 * L, 30 * L])
async def test_trials_and_chain_share_the_budget(tokens: int) -> None:
    for seed in range(10):
        outcome = await run(seed, budget=Budget(tokens), alpha=2.5)
        assert outcome.usage.decoded <= tokens
        assert outcome.report["trials"] <= tokens // L - 1
        assert outcome.finished or len(outcome.tokens) == L


async def test_behind_the_deadline_nothing_is_begun_but_one_answer() -> None:
    outcome = await run(1, budget=Budget(10**6, deadline=1.0), alpha=2.5)
    assert (outcome.law, outcome.stopped_by, outcome.usage.children) == ("approximate", "deadline_ms", 1)
