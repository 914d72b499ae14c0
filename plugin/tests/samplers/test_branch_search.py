"""The search of `branch` as it runs: draws, engines that stop otherwise, costs, budgets, ends, the record.

Engines that stop late, early or never at a trigger must give the same tree: only rows decide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_tree import (
    SEEDS,
    Deaf,
    H,
    Impatient,
    L,
    Ledger,
    Overshooting,
    Trimming,
    config,
    leaves,
    model,
    search,
)
from scipy import stats
from selection_cases import AbortedAfter, LastDigit
from sglang_power.engines.tabular import Prefix, TabularEngine, TabularModel
from sglang_power.errors import ChainAbortedError
from sglang_power.rng import Key
from sglang_power.samplers.budgets import Budget
from sglang_power.samplers.scores import Scores
from sglang_power.samplers.search import BranchSearch
from sglang_power.types import Tokens


async def test_drawn_branches_begin_with_draws_from_p() -> None:
    """The root forks at once: over 3,000 seeds, first tokens of both draws follow p (G-test, error 1e-4)."""
    p = np.array([0.1, 0.2, 0.3, 0.4])
    table = TabularModel(lambda _: p, horizon=1)
    conf = dataclasses.replace(config(policy="tree", drawn=True), horizon=1)
    alone, pairs = np.zeros(4), 0
    for seed in range(3000):
        scores = Scores("mean_log_p", LastDigit())
        found = await BranchSearch(TabularEngine(table), conf, Key(seed), scores, Budget(100)).run()
        firsts = {leaf.tokens.ids[0] for leaf in found}
        assert len(firsts) == len(found)
        pairs += len(found) == 2
        if len(found) == 1:
            alone[found[0].tokens.ids[0]] += 1
    same = p**2  # both draws are equal
    expected = [*(3000 * same), 3000 * (1 - same.sum())]
    assert stats.power_divergence([*alone, pairs], expected, lambda_="log-likelihood").pvalue > 1e-4
    wrong = [*(3000 * p * same.sum()), 3000 * (1 - same.sum())]
    assert stats.power_divergence([*alone, pairs], wrong, lambda_="log-likelihood").pvalue < 1e-6


@pytest.mark.parametrize("policy", ["tree", "lookahead", "beam"])
async def test_drawn_branches_repeat_and_depend_on_the_seed(policy: Any) -> None:
    conf = config(policy=policy, drawn=True, k=3, max_depth=3)
    engine = TabularEngine(model(1))
    runs = [
        [
            leaf.tokens.ids
            for leaf in await BranchSearch(
                engine, conf, Key(seed), Scores("mean_log_p", LastDigit()), Budget(10_000)
            ).run()
        ]
        for seed in (1, 1, *range(2, 12))
    ]
    assert runs[0] == runs[1]
    assert len({tuple(run) for run in runs}) > 2


# --- engines that stop otherwise ------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [Deaf, Overshooting, Impatient])
@pytest.mark.parametrize("policy", ["tree", "lookahead", "beam"])
@pytest.mark.parametrize("lookahead", [16, 2], ids=["whole rollouts", "short rollouts"])
@pytest.mark.parametrize("trigger", [("entropy", H), ("quantile", 0.6)])
async def test_only_rows_decide(
    engine: type[TabularEngine], policy: Any, trigger: tuple[str, float], lookahead: int
) -> None:
    name, threshold = trigger
    caps = {"max_depth": 4, "max_branches": 40, "lookahead": lookahead}
    conf = config(trigger=name, thresholds=(threshold,), policy=policy, **caps)
    for seed in SEEDS:
        assert await leaves(seed, conf, engine(model(seed))) == await leaves(seed, conf)


# --- what scores are asked about ------------------------------------------------------------------------


class Recorded:
    """A reward that prefers long answers and remembers what it was shown."""

    def __init__(self) -> None:
        self.seen: dict[Prefix, set[bool]] = {}

    async def __call__(self, ids: Sequence[int], finished: bool) -> float:
        self.seen.setdefault(tuple(ids), set()).add(finished)
        return float(len(ids))

    def report(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("lookahead", [16, 2], ids=["whole rollouts", "short rollouts"])
@pytest.mark.parametrize("engine", [TabularEngine, Overshooting])
async def test_a_look_ahead_is_scored_as_ended_where_it_has(
    engine: type[TabularEngine], lookahead: int
) -> None:
    reward = Recorded()
    told: list[set[bool]] = []
    for seed in SEEDS:
        table, reward.seen = model(seed), {}
        scores = Scores("reward", LastDigit(), reward=reward)
        conf = config(max_depth=4, lookahead=lookahead)
        await BranchSearch(engine(table), conf, Key(seed), scores, Budget(100_000)).run()
        assert reward.seen == {ids: {table.ends(ids)} for ids in reward.seen}
        told += reward.seen.values()
    assert {True} in told
    assert {False} in told


# --- costs, budgets, ends -------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["tree", "lookahead", "beam"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_every_token_is_counted_once(seed: int, policy: Any) -> None:
    engine = Ledger(model(seed))
    run = search(seed, config(policy=policy, max_depth=4), engine)
    await run.run()
    assert run.usage.decoded == engine.total.decoded
    assert run.usage.prefilled == engine.total.prefilled
    assert run.usage.children == engine.total.children
    assert run.usage.depth <= engine.total.depth


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["tree", "lookahead", "beam"]),
    st.booleans(),
    st.integers(0, 30),
    st.integers(L, 120),
    st.integers(2, 4),
    st.integers(1, 12),
)
async def test_the_budget_is_never_overdrawn(
    policy: Any, drawn: bool, seed: int, cap: int, k: int, lookahead: int
) -> None:
    conf = config(policy=policy, drawn=drawn, k=k, lookahead=lookahead)
    for engine in (Trimming, Overshooting):
        run = search(seed, conf, engine(model(seed)), max_total_tokens=cap)
        found = await run.run()
        assert run.usage.decoded <= cap
        assert all(leaf.finished or len(leaf.tokens) == L for leaf in found)


async def test_a_larger_budget_opens_more_branches() -> None:
    opened = []
    for cap in (L, 60, 100_000):
        run = search(1, config(policy="tree"), Trimming(model(1)), max_total_tokens=cap)
        await run.run()
        opened.append(run.opened)
    assert opened[0] == 0
    assert opened[0] < opened[1] < opened[2]


async def test_an_abort_leaves_the_leaves_there_are() -> None:
    conf = config(policy="tree", max_depth=3)
    everything = await leaves(2, conf)
    kept = set()
    for calls in range(1, 12):
        run = search(2, conf, AbortedAfter(model(2), calls))
        try:
            found = [leaf.tokens.ids for leaf in await run.run()]
        except ChainAbortedError:
            assert not run.leaves
            continue
        assert run.aborted == (len(found) < len(everything))
        assert set(found) <= set(everything)
        kept.add(len(found))
    assert len(kept) > 1


async def test_a_deadline_ends_every_path() -> None:
    run = search(3, config(policy="tree"))
    run._budget = Budget(100_000, None, deadline=1.0)
    found = await run.run()
    assert run.late
    assert [len(leaf.tokens) for leaf in found] == [2]  # one call to the fork, one that is too late


# --- the record and the stream ---------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["tree", "lookahead", "beam"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_the_record_spells_every_leaf(seed: int, policy: Any) -> None:
    run = search(seed, config(policy=policy, max_depth=4))
    found = await run.run()
    nodes = run.tree.nodes

    def spelled(number: int) -> Prefix:
        node = nodes[number]
        above = () if node.parent is None else spelled(node.parent)
        assert len(above) == node.start
        return above + node.tokens.ids

    assert [spelled(leaf.node) for leaf in found] == [leaf.tokens.ids for leaf in found]
    for node in nodes[1:]:
        assert node.parent is not None
        assert nodes[node.parent].fate == "forked"
        assert node.entropy is not None
        assert node.entropy > H
    assert {nodes[leaf.node].fate for leaf in found} == {"leaf"}


@pytest.mark.parametrize("policy", ["tree", "lookahead", "beam"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_what_is_streamed_begins_every_answer(seed: int, policy: Any) -> None:
    streamed: list[Tokens] = []
    run = search(seed, config(policy=policy, max_depth=4), observer=streamed.append)
    found = await run.run()
    lengths = [len(one) for one in streamed]
    assert lengths == sorted(set(lengths))
    for one in streamed:
        assert all(leaf.tokens.ids[: len(one)] == one.ids for leaf in found)
    common: Sequence[int] = found[0].tokens.ids if len(found) == 1 else ()
    assert not common or lengths[-1] == len(common)
