"""Which runs are labelled `law: "power"`: those of whose steps at least one was of the last stage.

Exact laws by enumeration (`exact`), runs of the serving code with fixed seeds: deterministic.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import exact
import exact_tilt
import pytest
from sglang_power.algorithms.mh import MHConfig
from sglang_power.engines.tabular import Prefix, TabularEngine
from sglang_power.frontend.laws import exponent_of
from sglang_power.samplers.budgets import Budget
from sglang_power.samplers.chain import ChainResult, StateReward
from sglang_power.samplers.chain_report import chain_law
from sglang_power.samplers.samples import Samples, draw

MODEL = exact.NARROW
CONFIG = exact.make_config(MODEL)
"""Horizon 5, blocks of 2, 2 steps a stage: a state that stops in the first block skips the second stage."""

RUNS = 400


def run(
    config: MHConfig, max_steps: int | None, draft: Prefix | None = None, reward: StateReward | None = None
) -> list[ChainResult]:
    budget = Budget(1_000_000, max_steps)
    keys = exact.seeds(1, RUNS)
    return exact.run_chains(MODEL, config, keys, draft=draft, budget=budget, reward=reward)


def labels(config: MHConfig, results: Sequence[ChainResult]) -> list[str]:
    return [chain_law(config, result) for result in results]


def in_the_last_stage(result: ChainResult) -> bool:
    """Where the state stands, which is no proof that the last stage moved it."""
    return result.state.stage == CONFIG.stages


@pytest.mark.parametrize("max_steps", [1, 2, 3, 4, 5, 6])
def test_an_answer_without_a_step_of_the_last_stage_is_approximate(max_steps: int) -> None:
    results = run(CONFIG, max_steps)
    for result, label in zip(results, labels(CONFIG, results), strict=True):
        stepped = any(info.stage == CONFIG.stages for info in result.infos)
        assert label == ("power" if stepped else "approximate")


def test_at_the_boundary_no_run_is_labelled_although_many_stand_in_the_last_stage() -> None:
    """The exact law there is another one, however many steps the earlier stages took."""
    pi = exact.target(MODEL, CONFIG)
    long = exact.make_config(MODEL, steps=30)
    for config in (CONFIG, long):
        boundary = exact.chain_law(MODEL, config, max_steps=config.steps)
        assert exact.total_variation(boundary, pi) > 0.2
    assert exact.total_variation(exact.chain_law(MODEL, long), pi) < 0.06
    results = run(CONFIG, 2)
    assert {result.stopped_by for result in results} == {"max_steps"}
    assert sum(in_the_last_stage(result) for result in results) > RUNS / 4
    assert set(labels(CONFIG, results)) == {"approximate"}


def test_at_the_boundary_a_reward_has_not_acted_at_all() -> None:
    config = exact_tilt.tilted(exact.make_config(MODEL, block_size=4), weight=6.0)
    untilted = exact.chain_law(MODEL, exact.make_config(MODEL, block_size=4), max_steps=config.steps)
    assert exact.total_variation(untilted, exact_tilt.target(MODEL, config)) > 0.5
    results = run(config, config.steps, reward=exact_tilt.scored)
    assert all(result.state.stage == config.stages for result in results)
    assert set(labels(config, results)) == {"approximate"}
    one_more = run(config, config.steps + 1, reward=exact_tilt.scored)
    assert set(labels(config, one_more)) == {"power"}


@pytest.mark.parametrize("draft", [(1, 2), (2, 1, 0)], ids=["unfinished", "finished"])
def test_a_draft_begins_in_the_last_stage_and_needs_a_step_all_the_same(draft: Prefix) -> None:
    stepped = run(CONFIG, 1, draft)
    assert set(labels(CONFIG, stepped)) == {"power"}
    unmoved = exact.run_chains(MODEL, CONFIG, exact.seeds(1, 20), draft=draft, budget=Budget(1))
    assert {result.state.stage for result in unmoved} == {CONFIG.stages}
    assert set(labels(CONFIG, unmoved)) == {"approximate"}


def test_a_single_stage_is_the_last_one() -> None:
    config = exact.make_config(MODEL, block_size=MODEL.horizon)
    assert set(labels(config, run(config, 1))) == {"power"}


# --- what goes by the label ---------------------------------------------------------------------------


def test_samples_of_a_vote_have_no_power_weight_without_a_step_of_the_last_stage() -> None:
    async def weighed(limit: int) -> list[bool]:
        samples = Samples(1, MODEL.horizon, CONFIG, tokens_each=1_000_000, max_steps=limit)
        draws = [await draw(TabularEngine(MODEL), samples, key) for key in exact.seeds(1, RUNS)]
        return [drawn.log_q is not None for drawn in draws]

    for limit in (2, 3):
        known = asyncio.run(weighed(limit))
        assert known == [label == "power" for label in labels(CONFIG, run(CONFIG, limit))]
        assert any(known) == (limit == 3)


def test_segments_of_programs_have_no_power_exponent_by_an_approximate_answer() -> None:
    params = {"params": {"alpha": 4.0}}
    assert exponent_of({"sampler": "power", "law": "power", **params}, {}) == 4.0
    assert exponent_of({"sampler": "power", "law": "approximate", **params}, {}) is None
