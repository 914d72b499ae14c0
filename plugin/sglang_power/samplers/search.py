"""Drives entropy-triggered branching over an Engine: grow, fork, keep, choose.

Paths advance in rounds: all that live grow to their next fork or to their end at the same time, forks open in
the order of the paths, and the policy keeps some. So a run is a function of its seed, whatever the order in
which the engine answers. Knows neither SGLang nor HTTP.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from sglang_power.algorithms import branching
from sglang_power.algorithms.branching import BranchConfig, Fork, ForkLimits, Path, Segment
from sglang_power.algorithms.engine import RankedToken, RankingEngine
from sglang_power.errors import ChainAbortedError
from sglang_power.rng import Key, Purpose
from sglang_power.samplers.budgets import Budget, StoppedBy
from sglang_power.samplers.firings import Firings, firings
from sglang_power.samplers.scores import Scores
from sglang_power.samplers.tasks import gather_or_cancel
from sglang_power.samplers.tree import Tree, common_length
from sglang_power.types import Tokens, Usage, in_parallel

T = TypeVar("T")

MAX_BRANCHES_OF_A_FORK = 1024

SearchObserver = Callable[[Tokens], None]
"""Told of the tokens that every answer which is still possible begins with."""


class BranchSearch:
    """One tree, from its root to its leaves.

    Args:
        engine: continues the prompt and ranks next tokens.
        config: see BranchConfig.
        key: of seeds.
        scores: what branches are compared by.
        budget: of the run; one path to the horizon is always affordable.
        observer: told whenever more of the answer is certain.

    Attributes:
        tree: the record.
        usage: what it has cost so far.
        leaves: paths that have ended, in order.
        late, aborted: what ended the run early, if anything did.
        opened: branches that forks have opened.
    """

    def __init__(
        self,
        engine: RankingEngine,
        config: BranchConfig,
        key: Key,
        scores: Scores,
        budget: Budget,
        observer: SearchObserver | None = None,
    ) -> None:
        self._engine, self._config, self._key = engine, config, key
        self._scores, self._budget, self._observer = scores, budget, observer
        self._certain = 0
        self.tree = Tree()
        self.usage = Usage()
        self.leaves: list[Path] = []
        self.late = self.aborted = False
        self.opened = 0

    @property
    def firings(self) -> Firings:
        """What the triggers did, once the run has ended."""
        return firings(self._config, self.tree)

    async def run(self) -> list[Path]:
        """The leaves that may be chosen; at least one.

        Raises:
            ChainAbortedError: aborted before any path had ended.
        """
        live = [Path()]
        try:
            while live:
                live = await self._round(live)
                self._observe(live)
        except ChainAbortedError:
            if not self.leaves:
                raise
            self.aborted = True
        return self.leaves

    @property
    def _limits(self) -> ForkLimits:
        budget = self._budget
        return ForkLimits(self.opened, self.usage.decoded, budget.max_total_tokens, budget.expired())

    async def _round(self, live: Sequence[Path]) -> list[Path]:
        """Grow every path, open the forks that the caps allow, keep what the policy keeps."""
        grown = await self._together([self._grow(path) for path in self._watched(live)])
        decided = branching.decide_round(self._config, grown, self._limits)
        self.opened = decided.opened
        for path in decided.ended:
            self._end(path)
        for refusal in decided.refused:
            self._close(refusal.path, refusal.cap, refusal.position)
        closed = [dataclasses.replace(refusal.path, open=False) for refusal in decided.refused]
        opened = await self._together([self._open(path, fork) for path, fork in decided.forks])
        groups = [self._recorded(*at, branches) for at, branches in zip(decided.forks, opened, strict=True)]
        return await self._keep(closed, decided.forks, groups)

    async def _grow(self, path: Path) -> tuple[tuple[Path, Fork | None], Usage]:
        """A path up to its next fork, or to its end."""
        config, usage = self._config, Usage()
        path, fork = branching.next_fork(config, path)
        while fork is None and not path.whole(config.horizon):
            call = branching.growth_call(config, path, self._seed(path), deadline=self._budget.deadline)
            continuation = await self._engine.generate(call)
            usage += continuation.usage
            path, fork = branching.next_fork(config, branching.grown(path, continuation))
            if fork is None and continuation.cut_short and self._budget.expired():
                self.late = True
                break
        return (path, fork), usage

    def _watched(self, live: Sequence[Path]) -> list[Path]:
        """The paths; no longer open where the budget has no room for the token that stopping one costs."""
        if branching.may_watch(self._config, live, self._limits):
            return list(live)
        for path in live:
            if path.open:
                self._close(path, "max_total_tokens", path.state.position)
        return [dataclasses.replace(path, open=False) for path in live]

    def _close(self, path: Path, cap: StoppedBy, position: int) -> None:
        """Note in the record that a limit keeps a path from forking from a position on."""
        node = self.tree[path.node]
        node.cap, node.cap_from = cap, position

    async def _open(self, path: Path, fork: Fork) -> tuple[list[Path], Usage]:
        """The branches of a fork."""
        ranked, usage = await self._first_tokens(path, fork)
        opened = branching.branches(self._config, path, fork, ranked)
        if not any(branch.first is None for branch in opened):
            usage += Usage(wasted=len(path.tokens) - fork.position)
        return opened, usage

    def _recorded(self, path: Path, fork: Fork, opened: Sequence[Path]) -> list[Path]:
        """Number the branches of a fork: not before all of a round are known, since seeds hang on numbers."""
        node = self.tree[path.node]
        node.fate, node.tokens = "forked", path.tokens.first(fork.position).after(node.start)
        numbers = [
            self.tree.open(path.node, fork.position, fork.trigger.name, fork.entropy, branch.first_log_p)
            for branch in opened
        ]
        return [
            dataclasses.replace(branch, node=number) for branch, number in zip(opened, numbers, strict=True)
        ]

    async def _first_tokens(self, path: Path, fork: Fork) -> tuple[list[RankedToken], Usage]:
        """What the branches of a fork may begin with."""
        if not self._config.drawn:
            return await self._engine.most_likely(path.tokens.ids[: fork.position], self._config.k)
        first = path.node * MAX_BRANCHES_OF_A_FORK
        seeds = [self._key.child_seed(first + i, Purpose.FORK) for i in range(self._config.k)]
        drawn = await gather_or_cancel(
            [self._engine.generate(branching.first_token_call(path, fork, seed)) for seed in seeds]
        )
        firsts = [RankedToken(each.tokens.ids[0], float(each.tokens.log_p[0])) for each in drawn]
        return branching.distinct(firsts), in_parallel(
            each.usage + Usage(wasted=len(each.tokens)) for each in drawn
        )

    async def _keep(
        self, closed: list[Path], forks: Sequence[tuple[Path, Fork]], groups: Sequence[list[Path]]
    ) -> list[Path]:
        """What lives on, by the policy; paths that a cap closed compete like any other."""
        if self._config.policy == "lookahead":
            pairs = zip(forks, groups, strict=True)
            return closed + [await self._look_ahead(fork, group) for (_, fork), group in pairs]
        live = closed + [branch for group in groups for branch in group]
        if self._config.policy == "tree" or not live:
            return live
        kept = await self._best(self.leaves + live, branching.beam_segments(self.leaves, live))
        self.leaves = [path for path in self.leaves if path in kept]
        return [path for path in live if path in kept]

    async def _look_ahead(self, fork: Fork, group: list[Path]) -> Path:
        """The best of the branches, rolled out."""
        horizon = branching.rollout_horizon(self._config, fork)
        rolled = await self._together([self._roll_out(path, horizon) for path in group])
        segments = branching.lookahead_segments(self._config, fork, rolled)
        return (await self._best(rolled, segments, 1))[0]

    async def _roll_out(self, path: Path, horizon: int) -> tuple[Path, Usage]:
        usage = Usage()
        while path.first is not None or not (path.finished or len(path.tokens) >= horizon):
            call = branching.growth_call(
                self._config, path, self._seed(path), horizon=horizon, deadline=self._budget.deadline
            )
            continuation = await self._engine.generate(call)
            usage += continuation.usage
            path = branching.grown(path, continuation)
            if continuation.cut_short and self._budget.expired():
                self.late = True
                break
        return path, usage

    async def _best(
        self, paths: Sequence[Path], segments: Sequence[Segment], count: int | None = None
    ) -> list[Path]:
        """The paths of highest score, in their order; the others are marked as pruned."""
        scores = await self._together([self._scores.segment(segment) for segment in segments])
        kept = branching.best(scores, self._config.beam if count is None else count)
        for i, (path, score) in enumerate(zip(paths, scores, strict=True)):
            self.tree.grown(path.node, path.tokens)
            node = self.tree[path.node]
            node.score = score
            if i not in kept:
                node.fate = "pruned"
        return [paths[i] for i in kept]

    def _end(self, path: Path) -> None:
        self.tree.grown(path.node, path.tokens)
        self.tree[path.node].fate = "leaf"
        self.leaves.append(path)

    def _observe(self, live: Sequence[Path]) -> None:
        if self._observer is None:
            return
        possible = [path.certain() for path in (*live, *self.leaves)]
        common = common_length(tokens.ids for tokens in possible)
        if common > self._certain:
            self._certain = common
            self._observer(possible[0].first(common))

    def _seed(self, path: Path) -> int:
        return self._key.child_seed(path.node, Purpose.PROPOSAL)

    async def _together(self, work: Sequence[Coroutine[Any, Any, tuple[T, Usage]]]) -> list[T]:
        """All results in order; their cost is counted as that of calls at the same time."""
        results = await gather_or_cancel(work)
        self.usage += in_parallel(usage for _, usage in results)
        return [result for result, _ in results]
