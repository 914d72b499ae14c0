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


def test_at_the_boundary_standing_in_the_last_stage_is_no_step_of_it() -> None:
    """Answers that their first extension ended were there from the beginning, and had both steps."""
    results = run(CONFIG, 2)
    unmoved = [result for result in results if result.last_stage_steps == 0]
    assert {result.stopped_by for result in unmoved} == {"max_steps"}
    assert sum(in_the_last_stage(result) for result in unmoved) > RUNS / 20
    assert set(labels(CONFIG, unmoved)) == {"approximate"}
    moved = [result for result in results if result.last_stage_steps > 0]
    assert {result.last_stage_steps for result in moved} == {2}
    assert set(labels(CONFIG, moved)) == {"power"}


def test_at_the_boundary_a_reward_has_acted_on_no_run_without_a_label() -> None:
    config = exact_tilt.tilted(exact.make_config(MODEL, block_size=4), weight=6.0)
    results = run(config, config.steps, reward=exact_tilt.scored)
    assert all(result.state.stage == config.stages for result in results)
    acted = ["power" if result.last_stage_steps else "approximate" for result in results]
    assert labels(config, results) == acted
    assert set(acted) == {"power", "approximate"}
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
        assert set(known) == {True, False}


def test_segments_of_programs_have_no_power_exponent_by_an_approximate_answer() -> None:
    params = {"params": {"alpha": 4.0}}
    assert exponent_of({"sampler": "power", "law": "power", **params}, {}) == 4.0
    assert exponent_of({"sampler": "power", "law": "approximate", **params}, {}) is None
