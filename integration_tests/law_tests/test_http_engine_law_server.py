"""The law of a chain that a client runs through HttpEngine, against a server without the plugin's sampler.

Draws of a server without --enable-deterministic-inference are a fresh sample at every run: a right engine
fails the G-test with probability 1e-6; the control is rejected at 1e-6. Figures are printed.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sglang_power.algorithms.cuts import UniformCut
from sglang_power.algorithms.mh import MHConfig
from sglang_power.engines.http import Remote
from sglang_power.rng import Key
from sglang_power.samplers.budgets import Budget
from sglang_power.samplers.chain import Chain
from sglang_power.samplers.tasks import gather_or_cancel
from sglang_power.types import ProposalLaw

from integration_tests.helpers.goodness_of_fit import REJECTED, g_test
from integration_tests.law_model import HORIZON, PROMPT, AnswerTree, tabular_model
from integration_tests.server import Server
from integration_tests.tests.test_law_server import counted, drawn

CHAIN = MHConfig(
    alpha=2.0, law=ProposalLaw(1.0), horizon=HORIZON, block_size=HORIZON, steps=8, cut=UniformCut()
)
"""Proposals at tau = 1, from exact drafts: after any number of steps the law is the target itself."""

CHAINS = 600
AT_ONCE = 32


@pytest.fixture(scope="module")
def tree(law_model: Path) -> AnswerTree:
    """Every answer, with its probability."""
    return AnswerTree(tabular_model(law_model, PROMPT, HORIZON))


@pytest.mark.server
async def test_chains_follow_the_power_law(law_server: Server, tree: AnswerTree) -> None:
    target = tree.target(CHAIN)
    drafts = drawn(tree, target, CHAINS, seed=11)
    slots = asyncio.Semaphore(AT_ONCE)
    async with Remote(law_server.url) as remote:
        engine = await remote.engine(PROMPT, config=CHAIN)

        async def moved(number: int) -> tuple[tuple[int, ...], int]:
            async with slots:
                result = await Chain(engine, CHAIN, Key(7, number), Budget(10_000)).run(drafts[number])
            assert (result.stopped_by, len(result.infos)) == ("completed", CHAIN.steps)
            return result.state.tokens.ids, sum(info.accepted for info in result.infos)

        ends = await gather_or_cancel([moved(number) for number in range(CHAINS)])
    p = g_test(counted(tree, [ids for ids, _ in ends]), target)
    accepted = sum(count for _, count in ends) / (CHAINS * CHAIN.steps)
    print(f"p {p:.3f}, accepted {accepted:.2f}")
    assert 0.1 < accepted < 0.9
    assert sum(ids != draft for (ids, _), draft in zip(ends, drafts, strict=True)) > CHAINS / 2
    assert p > REJECTED


def test_control_without_the_cut_ratio_the_chains_fail(tree: AnswerTree) -> None:
    """As many exact draws from the enumerated law of that mistake."""
    target = tree.target(CHAIN)
    wrong = tree.answers(CHAIN, target, "no cut ratio")
    p = g_test(counted(tree, drawn(tree, wrong, CHAINS, seed=7)), target)
    print(f"p {p:.1e}")
    assert p < REJECTED
