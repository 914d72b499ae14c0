"""Branching on an exact model: every tree is compared with one that is grown naively from the table.

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
from sglang_power.algorithms.branching import BranchConfig, best
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.algorithms.triggers import Trigger
from sglang_power.engines.tabular import Prefix, TabularEngine, TabularModel
from sglang_power.errors import ChainAbortedError
from sglang_power.rng import Key
from sglang_power.serving.branch import BranchSearch
from sglang_power.serving.budgets import Budget
from sglang_power.serving.scoring import Scores
from sglang_power.types import Continuation, ProposalLaw, Tokens, Usage
from test_selection import LastDigit

L = 9
H = 0.9
SEEDS = range(12)


def model(seed: int) -> TabularModel:
    """Rows of four tokens, now certain, now not; the stop is rarely the most likely token."""

    def table(prefix: Prefix) -> Any:
        rng = np.random.default_rng([seed, len(prefix), *prefix])
        p = rng.dirichlet(np.full(4, rng.choice([0.1, 0.5, 4.0]))).clip(1e-6)
        p[0] *= 0.3
        return p / p.sum()

    return TabularModel(table, horizon=L)


def config(**fields: Any) -> BranchConfig:
    trigger = Trigger(fields.pop("trigger", "entropy"), fields.pop("thresholds", (H,)))
    return BranchConfig((trigger,), L, **fields)


def search(
    seed: int, conf: BranchConfig, engine: TabularEngine | None = None, **options: Any
) -> BranchSearch:
    cap = options.pop("max_total_tokens", 100_000)
    engine = TabularEngine(model(seed)) if engine is None else engine
    scores = Scores(options.pop("score", "mean_log_p"), LastDigit(), alpha=4.0)
    return BranchSearch(engine, conf, Key(seed), scores, Budget(cap), **options)


async def leaves(seed: int, conf: BranchConfig, engine: TabularEngine | None = None) -> list[Prefix]:
    return [leaf.tokens.ids for leaf in await search(seed, conf, engine).run()]


# --- the naive tree -----------------------------------------------------------------------------------


def entropy(p: Any) -> float:
    return float(-(p @ np.log(p)))


def fires(conf: BranchConfig, table: TabularModel, prefix: Prefix) -> bool:
    trigger = conf.triggers[0]
    h = entropy(table.probs(prefix))
    earlier = [entropy(table.probs(prefix[:t])) for t in range(len(prefix))]
    if trigger.name == "entropy":
        return h > trigger.thresholds[0]
    if trigger.name == "jump":
        return h - (earlier[-1] if earlier else 0.0) > trigger.thresholds[0]
    assert trigger.name == "quantile"
    share = trigger.thresholds[0]
    return len(earlier) * (1 - share) >= 1 and float(np.mean([e < h for e in earlier])) >= share


def ranked(table: TabularModel, prefix: Prefix, k: int) -> list[int]:
    return [int(v) for v in np.argsort(-table.probs(prefix), kind="stable")[:k]]


def ended(table: TabularModel, prefix: Prefix, horizon: int = L) -> bool:
    return table.ends(prefix) or len(prefix) >= horizon


def greedy(table: TabularModel, prefix: Prefix, horizon: int) -> Prefix:
    while not ended(table, prefix, horizon):
        prefix = (*prefix, ranked(table, prefix, 1)[0])
    return prefix


def mean_log_p(table: TabularModel, ids: Prefix, start: int = 0) -> float:
    return float(table.score(ids, ProposalLaw(1.0)).log_p[start:].mean())


def to_fork(
    conf: BranchConfig, table: TabularModel, prefix: Prefix, last: int, depth: int
) -> tuple[Prefix, bool]:
    """Greedy to the next fork, or to the end."""
    while not ended(table, prefix):
        far_enough = last < 0 or len(prefix) >= last + conf.min_gap
        if far_enough and depth < conf.max_depth and fires(conf, table, prefix):
            return prefix, True
        prefix = (*prefix, ranked(table, prefix, 1)[0])
    return prefix, False


def naive_tree(conf: BranchConfig, table: TabularModel) -> list[Prefix]:
    """Leaves of the policy "tree", level by level, under all caps."""
    live: list[tuple[Prefix, int, int]] = [((), -1, 0)]
    found: list[Prefix] = []
    opened = 0
    while live:
        following = []
        for prefix, last, depth in live:
            at, forks = to_fork(conf, table, prefix, last, depth)
            if forks and opened + conf.k <= conf.max_branches:
                opened += conf.k
                following += [((*at, v), len(at), depth + 1) for v in ranked(table, at, conf.k)]
            elif forks:
                found.append(greedy(table, at, L))
            else:
                found.append(at)
        live = following
    return found


def naive_lookahead(conf: BranchConfig, table: TabularModel) -> Prefix:
    prefix: Prefix = ()
    last, depth, opened = -1, 0, 0
    while True:
        at, forks = to_fork(conf, table, prefix, last, depth)
        if not forks:
            return at
        if opened + conf.k > conf.max_branches:
            return greedy(table, at, L)
        opened += conf.k
        firsts = ranked(table, at, conf.k)
        rolled = [greedy(table, (*at, v), min(len(at) + conf.lookahead, L)) for v in firsts]
        means = [mean_log_p(table, one, len(at)) for one in rolled]
        prefix, last, depth = (*at, firsts[int(np.argmax(means))]), len(at), depth + 1


def naive_beam(conf: BranchConfig, table: TabularModel) -> list[Prefix]:
    live: list[tuple[Prefix, int, int]] = [((), -1, 0)]
    done: list[Prefix] = []
    while live:
        following = []
        for prefix, last, depth in live:
            at, forks = to_fork(conf, table, prefix, last, depth)
            if forks:
                following += [((*at, v), len(at), depth + 1) for v in ranked(table, at, conf.k)]
            else:
                done.append(at)
        pool = [(one, None) for one in done] + [(one[0], one) for one in following]
        if following:
            means = np.array([mean_log_p(table, ids) for ids, _ in pool])
            kept = sorted(np.argsort(-means, kind="stable")[: conf.beam])
            pool = [pool[i] for i in kept]
        done = [ids for ids, path in pool if path is None]
        live = [path for _, path in pool if path is not None]
    return done


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


# --- engines that stop otherwise ------------------------------------------------------------------------


class Deaf(TabularEngine):
    """Never hears a trigger: every call runs to its end."""

    async def generate(self, call: ContinuationCall) -> Continuation:
        return await super().generate(dataclasses.replace(call, watch=None))


class Overshooting(TabularEngine):
    """Stops a token late, as a server under overlap scheduling does, and says what that cost."""

    async def generate(self, call: ContinuationCall) -> Continuation:
        one = await super().generate(call)
        return (
            dataclasses.replace(one, usage=one.usage + Usage(decoded=1, wasted=1)) if one.cut_short else one
        )


class Impatient(TabularEngine):
    """Stops after two tokens, whatever was asked."""

    async def generate(self, call: ContinuationCall) -> Continuation:
        short = min(call.horizon, len(call.prefix) + 2)
        one = await super().generate(dataclasses.replace(call, horizon=short))
        early = not one.finished and len(call.prefix) + len(one.tokens) < call.horizon
        return dataclasses.replace(one, cut_short=early)


@pytest.mark.parametrize("engine", [Deaf, Overshooting, Impatient])
@pytest.mark.parametrize("policy", ["tree", "lookahead", "beam"])
@pytest.mark.parametrize("trigger", [("entropy", H), ("quantile", 0.6)])
async def test_only_rows_decide(engine: type[TabularEngine], policy: Any, trigger: tuple[str, float]) -> None:
    conf = config(trigger=trigger[0], thresholds=(trigger[1],), policy=policy, max_depth=4, max_branches=40)
    for seed in SEEDS:
        assert await leaves(seed, conf, engine(model(seed))) == await leaves(seed, conf)


# --- costs, budgets, ends -------------------------------------------------------------------------------


class Ledger(Overshooting):
    """Adds up what it answers."""

    total = Usage()

    async def generate(self, call: ContinuationCall) -> Continuation:
        one = await super().generate(call)
        self.total += one.usage
        return one

    async def most_likely(self, prefix: Prefix, count: int) -> Any:
        ranking, usage = await super().most_likely(prefix, count)
        self.total += usage
        return ranking, usage


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
    st.integers(0, 30),
    st.integers(L, 120),
    st.integers(2, 4),
    st.integers(1, 12),
)
async def test_the_budget_is_never_overdrawn(
    policy: Any, seed: int, cap: int, k: int, lookahead: int
) -> None:
    conf = config(policy=policy, k=k, lookahead=lookahead)
    run = search(seed, conf, Overshooting(model(seed)), max_total_tokens=cap)
    found = await run.run()
    assert run.usage.decoded <= cap
    assert all(leaf.finished or len(leaf.tokens) == L for leaf in found)


async def test_a_larger_budget_opens_more_branches() -> None:
    opened = []
    for cap in (L, 60, 100_000):
        run = search(1, config(policy="tree"), Overshooting(model(1)), max_total_tokens=cap)
        await run.run()
        opened.append(run.opened)
    assert opened[0] == 0
    assert opened[0] < opened[1] < opened[2]


class Aborted(TabularEngine):
    """Aborts after some calls."""

    def __init__(self, table: TabularModel, calls: int) -> None:
        super().__init__(table)
        self._left = calls

    async def generate(self, call: ContinuationCall) -> Continuation:
        self._left -= 1
        if self._left < 0:
            raise ChainAbortedError("aborted")
        return await super().generate(call)


async def test_an_abort_leaves_the_leaves_there_are() -> None:
    conf = config(policy="tree", max_depth=3)
    everything = await leaves(2, conf)
    kept = set()
    for calls in range(1, 12):
        run = search(2, conf, Aborted(model(2), calls))
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
