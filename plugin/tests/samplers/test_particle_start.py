"""Chains whose last stage starts from the answer of a particle run: the same law, another start. No server.

The G-test rejects a right sampler with probability 1e-3; its control is rejected with p < 1e-6 at the same
sample size. Seeds are fixed, so a passing suite passes always.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import exact
import pytest
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.algorithms.mh import MHConfig
from sglang_power.algorithms.smc import SMCConfig
from sglang_power.engines.tabular import TabularEngine
from sglang_power.errors import ChainAbortedError, RequestError
from sglang_power.request import parse_power, parse_request
from sglang_power.rng import Key
from sglang_power.samplers.budgets import Budget
from sglang_power.samplers.chain import Chain
from sglang_power.samplers.chain_report import chain_law
from sglang_power.samplers.particles import ParticleRuns
from sglang_power.types import Continuation, ProposalLaw, Tokens

MODEL = exact.NARROW
CHAINS = 600
CLOSE = 0.03


def started(steps: int, particles: int = 4, **changes: Any) -> MHConfig:
    """A chain that starts from particles."""
    config = exact.make_config(MODEL, steps=steps, law=ProposalLaw(1.0))
    start = SMCConfig(config.alpha, config.law, config.horizon, particles, block_size=2)
    return dataclasses.replace(config, start=start, **changes)


def test_answers_follow_the_target_whatever_the_start() -> None:
    """So many steps that from the least likely answers and the likeliest one the law is near p^alpha."""
    config = started(steps=28)
    target = exact.normalised(exact.target(MODEL, config))
    bare = dataclasses.replace(config, start=None)
    farthest = sorted(target, key=target.__getitem__)[
        :3
    ]  # the chain is slowest to leave what it should not keep
    laws = [exact.chain_law(MODEL, bare, draft=y) for y in (*farthest, max(target, key=target.__getitem__))]
    assert max(exact.total_variation(law, target) for law in laws) < CLOSE
    drawn = exact.answers(exact.run_chains(MODEL, config, exact.seeds(10_000, CHAINS)))
    assert exact.g_test(drawn, target) > 1e-3
    one_step = started(steps=1, particles=2)
    control = exact.answers(exact.run_chains(MODEL, one_step, exact.seeds(10_000, CHAINS)))
    p = exact.g_test(control, target)
    assert p < 1e-6, p


@pytest.mark.parametrize("seed", range(5))
async def test_it_starts_where_the_particles_end_and_has_the_steps_of_the_last_stage_alone(seed: int) -> None:
    config, engine, key = started(steps=3), TabularEngine(MODEL), Key(seed)
    assert config.start is not None
    budget = Budget(100_000)
    runs = ParticleRuns(engine, config.start, key.split(1, 2), budget)
    answer = await runs.drawn(await runs.run())
    chain = Chain(engine, config, key, budget)
    result = await chain.run()
    assert result.infos[0].current_ids == answer.tokens.ids
    assert [info.stage for info in result.infos] == [config.stages] * 3
    assert result.last_stage_steps == 3
    assert chain_law(config, result) == "power"
    steps = sum(len(info.proposal) for info in result.infos)
    assert result.usage.decoded == runs.usage.decoded + steps
    assert result.usage.depth == runs.usage.depth + steps + 3


@pytest.mark.parametrize("ahead", [2, 8])
async def test_prefetching_leaves_the_chain_as_it_is(ahead: int) -> None:
    for seed in range(10):
        one, many = [
            await Chain(TabularEngine(MODEL), started(8, prefetch=count), Key(seed), Budget(100_000)).run()
            for count in (1, ahead)
        ]
        assert one.state.tokens.ids == many.state.tokens.ids
        assert [info.accepted for info in one.infos] == [info.accepted for info in many.infos]


class Aborted:
    """An engine that is aborted after some calls.

    Args:
        calls: that it answers.
    """

    def __init__(self, calls: int) -> None:
        self._left, self._engine = calls, TabularEngine(MODEL)

    async def generate(self, call: ContinuationCall) -> Continuation:
        if self._left == 0:
            raise ChainAbortedError("aborted")
        self._left -= 1
        return await self._engine.generate(call)

    def share(self, wanted: int) -> int:
        return wanted


def test_an_abort_among_the_particles_leaves_what_there_was() -> None:
    async def tokens_after(calls: int) -> Tokens:
        chain = Chain(Aborted(calls), started(steps=2), Key(3), Budget(100_000))
        with pytest.raises(ChainAbortedError):
            await chain.run()
        return chain.result("abort").state.tokens

    assert len(asyncio.run(tokens_after(0))) == 0
    assert 1 <= len(asyncio.run(tokens_after(4))) <= 2


def test_a_deadline_leaves_a_whole_answer() -> None:
    async def run() -> None:
        chain = Chain(TabularEngine(MODEL), started(steps=2), Key(3), Budget(100_000, deadline=1.0))
        result = await chain.run()
        state = result.state
        assert state.finished or len(state.tokens) == MODEL.horizon
        assert (result.stopped_by, chain_law(started(2), result)) == ("deadline_ms", "approximate")

    asyncio.run(run())


def test_the_request_says_what_starts_it() -> None:
    asked = parse_power({"start": "particles", "particles": 8, "block_size": 4, "proposal_temperature": 0.5})
    start = asked.mh_config(64).start
    assert start == SMCConfig(4.0, asked.law, 64, 8, 4)
    assert asked.mh_config(2).start == SMCConfig(4.0, asked.law, 2, 8, 2)
    assert (asked.needs.answers, asked.needs.answers_field, asked.needs.in_step) == (8, "particles", True)
    assert asked.echo(64)["particles"] == 8
    assert parse_power({}).mh_config(64).start is None
    assert "particles" not in parse_power({}).echo(64)


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"particles": 8}, "particles"),
        ({"start": "particles", "particles": 1}, "particles"),
        ({"start": "particles", "initial_ids": [1]}, "initial_ids"),
        ({"start": "particles", "initial_text": "a"}, "initial_text"),
        ({"start": "particles", "lookback_blocks": 1}, "lookback_blocks"),
        ({"start": "particles", "schedule": "paper"}, "schedule"),
        ({"start": "elsewhere"}, "start"),
    ],
)
def test_what_would_do_nothing_is_refused(params: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestError) as error:
        parse_power(params)
    assert error.value.field == field


def test_a_leaf_is_a_start_already() -> None:
    with pytest.raises(RequestError) as error:
        parse_request({"sampler": "branch", "refine": {"sampler": "power", "start": "particles"}})
    assert error.value.field == "refine.start"
