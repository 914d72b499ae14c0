"""Trees of `branch` grown naively from the table of an exact model, which tests compare the search with, and
engines over that table which stop otherwise than asked."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

import numpy as np
from selection_cases import LastDigit
from sglang_power.algorithms.branching import BranchConfig
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.algorithms.triggers import Trigger
from sglang_power.engines.tabular import Prefix, TabularEngine, TabularModel
from sglang_power.rng import Key
from sglang_power.samplers.budgets import Budget
from sglang_power.samplers.scores import Scores
from sglang_power.samplers.search import BranchSearch
from sglang_power.types import Continuation, ProposalLaw, Usage

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
    enough = len(earlier) * (1 - Fraction(str(share))) >= 1
    return enough and float(np.mean([e < h for e in earlier])) >= share


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


# --- engines that behave otherwise -----------------------------------------------------------------------


class Deaf(TabularEngine):
    """Never hears a trigger: every call runs to its end."""

    async def generate(self, call: ContinuationCall) -> Continuation:
        return await super().generate(dataclasses.replace(call, rules=()))


class Overshooting(TabularEngine):
    """Stops a token late, and hands that token over."""

    async def generate(self, call: ContinuationCall) -> Continuation:
        one = await super().generate(call)
        if not one.cut_short:
            return one
        so_far = call.prefix + one.tokens.ids
        late = ContinuationCall(so_far, len(so_far) + 1, call.law, call.seed)
        more = await super().generate(late)
        cut_short = not more.finished and late.horizon < call.horizon
        return Continuation(one.tokens + more.tokens, more.finished, cut_short, one.usage + more.usage)


class Trimming(TabularEngine):
    """Stops a token late, as a server under overlap scheduling does, trims it, and says what that cost."""

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


class Ledger(Trimming):
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
