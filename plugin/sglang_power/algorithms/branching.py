"""Entropy-triggered branching: fork a path where a trigger fires, and keep what scores best.

A path decodes by a continuation law (greedy unless said otherwise). Where a trigger fires at row t, and the
caps allow, it forks at t on the k most likely tokens. Which branches live on is the policy's choice:

tree       all of them; the answer is chosen among all leaves
lookahead  each is rolled out to `lookahead` tokens behind the fork or to its end, the best one goes on
           (self-evaluation decoding, arXiv 2405.16552)
beam       after every round of forks the best `beam` paths and leaves are kept

Rows are judged by `triggers`; an engine may stop a path behind the row that fires, which only saves tokens:
`next_fork` decides from the rows alone. Pure: knows neither text nor server.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sglang_power.algorithms.cot import GREEDY
from sglang_power.algorithms.engine import ContinuationCall, RankedToken
from sglang_power.algorithms.triggers import Trigger, TriggerMonitor, TriggerState, Watch
from sglang_power.types import Continuation, ProposalLaw, Tokens

BranchPolicy = Literal["tree", "lookahead", "beam"]


@dataclass(frozen=True, slots=True)
class BranchConfig:
    """One run.

    Args:
        triggers: any of them forks.
        horizon: L, tokens of an answer.
        k: branches of a fork, >= 2.
        drawn: branches begin with k draws from p, equal ones once, instead of the k most likely tokens.
        policy: which branches live on.
        lookahead: tokens of a rollout, from the fork on.
        beam: paths that are kept.
        max_branches: branches that all forks of a run may open together.
        max_depth: forks on one path.
        min_gap: tokens between two forks of a path, >= 1.
        law: of continuations.
    """

    triggers: tuple[Trigger, ...]
    horizon: int
    k: int = 2
    drawn: bool = False
    policy: BranchPolicy = "lookahead"
    lookahead: int = 16
    beam: int = 4
    max_branches: int = 32
    max_depth: int = 32
    min_gap: int = 1
    law: ProposalLaw = GREEDY


@dataclass(frozen=True, slots=True, eq=False)
class Path:
    """One path of the tree.

    Args:
        tokens: what it has generated.
        finished: it ends with a stop.
        first: the token that it begins with behind its fork, where that is not generated yet.
        first_log_p: log probability of its first token behind the fork; 0 for the root.
        depth: forks above it.
        state: of the triggers.
        open: it may fork again.
        node: its number in the record of the tree.
    """

    tokens: Tokens = Tokens.EMPTY
    finished: bool = False
    first: RankedToken | None = None
    first_log_p: float = 0.0
    depth: int = 0
    state: TriggerState = field(default_factory=TriggerState)
    open: bool = True
    node: int = 0

    def __len__(self) -> int:
        return len(self.tokens) + (self.first is not None)

    @property
    def log_p(self) -> float:
        """Of all its tokens, the one to come included, nats."""
        return float(self.tokens.log_p.sum()) + (0.0 if self.first is None else self.first.log_p)

    def certain(self) -> Tokens:
        """The tokens that no later fork of this path can change."""
        return self.tokens.first(self.state.position) if self.open else self.tokens

    def whole(self, horizon: int) -> bool:
        """Whether nothing can follow."""
        return self.finished or len(self.tokens) >= horizon


@dataclass(frozen=True, slots=True)
class Fork:
    """Where a path forks.

    Args:
        position: t, of the token that the branches differ in.
        trigger: what fired.
        entropy: H_t, nats.
    """

    position: int
    trigger: Trigger
    entropy: float


def next_fork(config: BranchConfig, path: Path) -> tuple[Path, Fork | None]:
    """Show a path's new rows to the triggers: the path as they know it then, and the first that fires."""
    if not path.open:
        return path, None
    seen = path.state.position
    monitor = TriggerMonitor(Watch(config.triggers, path.state))
    found = monitor.first_firing(path.tokens.rows[seen:])
    path = dataclasses.replace(path, state=monitor.state)
    if found is None:
        return path, None
    index, trigger = found
    position = seen + index
    return path, Fork(position, trigger, float(path.tokens.entropy[position]))


def branches(config: BranchConfig, path: Path, fork: Fork, ranked: Sequence[RankedToken]) -> list[Path]:
    """The paths that a fork opens, most likely first.

    The branch that takes the token which the path itself had drawn keeps what the path had generated.

    Args:
        config: see BranchConfig.
        path: as `next_fork` gave it.
        fork: where.
        ranked: the most likely tokens there, best first; impossible ones are left out.
    """
    at = fork.position
    state = dataclasses.replace(path.state, open_from=at + config.min_gap)
    depth = path.depth + 1
    opens = depth < config.max_depth
    opened = []
    for first in ranked[: config.k]:
        if first.log_p == -math.inf:
            continue
        fresh = dataclasses.replace(path, state=state, depth=depth, open=opens, first_log_p=first.log_p)
        if first.token != path.tokens.ids[at]:
            fresh = dataclasses.replace(fresh, tokens=path.tokens.first(at), finished=False, first=first)
        opened.append(fresh)
    return opened


def first_token_call(path: Path, fork: Fork, seed: int) -> ContinuationCall:
    """The engine call that draws the first token of one branch from p."""
    before = path.tokens.ids[: fork.position]
    return ContinuationCall(before, fork.position + 1, ProposalLaw(1.0), seed)


def distinct(firsts: Iterable[RankedToken]) -> list[RankedToken]:
    """Equal draws once, most likely first."""
    return sorted({first.token: first for first in firsts}.values(), key=lambda first: -first.log_p)


def growth_call(
    config: BranchConfig,
    path: Path,
    seed: int,
    *,
    horizon: int | None = None,
    deadline: float | None = None,
) -> ContinuationCall:
    """The engine call that grows a path to its next fork, or without triggers to `horizon` tokens."""
    length = len(path.tokens)
    watches = horizon is None and path.open
    return ContinuationCall(
        prefix=path.tokens.ids,
        horizon=config.horizon if horizon is None else horizon,
        law=config.law,
        seed=seed,
        forced=None if path.first is None else (path.first.token,),
        rules=(Watch(config.triggers, path.state, start=length),) if watches else (),
        deadline=deadline,
    )


def grown(path: Path, continuation: Continuation) -> Path:
    """The path with what an engine generated."""
    tokens = path.tokens + continuation.tokens
    return dataclasses.replace(path, tokens=tokens, finished=continuation.finished, first=None)


def rollout_horizon(config: BranchConfig, fork: Fork) -> int:
    """Tokens of an answer up to which the branches of a fork are rolled out."""
    return min(fork.position + config.lookahead, config.horizon)


def tokens_at_most(config: BranchConfig, path: Path, fork: Fork) -> int:
    """How many tokens a fork may add to what the run needs to bring all paths to the horizon."""
    given_up = len(path.tokens) - fork.position
    behind = config.horizon - fork.position
    each = min(config.lookahead, behind) if config.policy == "lookahead" else behind
    return (config.k - 1) * each + given_up


def extra_tokens(config: BranchConfig, path: Path, fork: Fork) -> int:
    """Return how many tokens a fork may add to a run, those that find its branches included."""
    finding = config.k if config.drawn else 1
    return finding + tokens_at_most(config, path, fork)


Cap = Literal["max_branches", "max_total_tokens", "deadline_ms"]
"""What may refuse a fork."""


@dataclass(frozen=True, slots=True)
class ForkLimits:
    """What a round has to keep to.

    Args:
        opened: branches that the forks of earlier rounds have opened.
        decoded: tokens that the run has decoded.
        max_total_tokens: that it may decode; every path's way to the horizon stays affordable.
        late: the deadline has passed.
    """

    opened: int
    decoded: int
    max_total_tokens: int
    late: bool = False


@dataclass(frozen=True, slots=True)
class RefusedFork:
    """A fork that a cap refused: its path goes on alone."""

    path: Path
    position: int
    cap: Cap


@dataclass(frozen=True, slots=True)
class Round:
    """What becomes of paths that have grown to a fork or to their end.

    Args:
        ended: paths that did not fork.
        forks: paths and the places at which they fork.
        refused: forks that a cap refused.
        opened: branches that all forks so far open together.
    """

    ended: tuple[Path, ...]
    forks: tuple[tuple[Path, Fork], ...]
    refused: tuple[RefusedFork, ...]
    opened: int


def decide_round(
    config: BranchConfig, grown: Sequence[tuple[Path, Fork | None]], limits: ForkLimits
) -> Round:
    """Open forks in the order of their paths, as far as the caps allow."""
    opened = limits.opened
    reserved = sum(config.horizon - len(path.tokens) for path, fork in grown if fork is not None)
    forks: list[tuple[Path, Fork]] = []
    refused: list[RefusedFork] = []
    for path, fork in grown:
        if fork is None:
            continue
        needed = limits.decoded + reserved + extra_tokens(config, path, fork)
        if (cap := _cap(config, limits, opened, needed)) is not None:
            refused.append(RefusedFork(path, fork.position, cap))
            continue
        forks.append((path, fork))
        opened += config.k
        reserved += extra_tokens(config, path, fork)
    ended = tuple(path for path, fork in grown if fork is None)
    return Round(ended, tuple(forks), tuple(refused), opened)


def _cap(config: BranchConfig, limits: ForkLimits, opened: int, needed: int) -> Cap | None:
    """The cap that refuses a fork, if one does."""
    if opened + config.k > config.max_branches:
        return "max_branches"
    if needed > limits.max_total_tokens:
        return "max_total_tokens"
    return "deadline_ms" if limits.late else None


def may_watch(config: BranchConfig, live: Sequence[Path], limits: ForkLimits) -> bool:
    """Return whether there is room for the token that stopping each path at a trigger costs."""
    needed = sum(config.horizon - len(path.tokens) + 1 for path in live)
    return limits.decoded + needed <= limits.max_total_tokens


@dataclass(frozen=True, slots=True)
class Segment:
    """What a path is compared by.

    Args:
        ids: of its first tokens, up to the end of what is compared.
        log_p: of what is compared, nats.
        length: tokens of what is compared, >= 1.
        finished: the path ends with it, by a stop.
    """

    ids: tuple[int, ...]
    log_p: float
    length: int
    finished: bool = False


def stretch(path: Path, start: int, end: int) -> Segment:
    """Return a path up to `end`, where it is that long, compared by its tokens from `start` on."""
    tokens = path.tokens.first(end)
    compared = tokens.after(start)
    finished = path.finished and len(tokens) == len(path.tokens)
    return Segment(tokens.ids, float(compared.log_p.sum()), len(compared), finished)


def beam_segments(leaves: Sequence[Path], live: Sequence[Path]) -> list[Segment]:
    """Return what a beam compares: whole leaves, and of paths that live on what triggers have seen."""
    wholes = [_beginning(leaf, len(leaf)) for leaf in leaves]
    return wholes + [_beginning(path, path.state.position) for path in live]


def _beginning(path: Path, length: int) -> Segment:
    """The first tokens of a path; the one that its branch begins with may not be generated yet."""
    if path.first is not None:
        return Segment((*path.tokens.ids, path.first.token), path.log_p, len(path))
    return stretch(path, 0, length)


def lookahead_segments(config: BranchConfig, fork: Fork, rolled: Sequence[Path]) -> list[Segment]:
    """Return what rollouts are compared by: what follows their fork."""
    end = rollout_horizon(config, fork)
    return [stretch(path, fork.position, end) for path in rolled]


def best(scores: Sequence[float | None], count: int) -> list[int]:
    """Indices of the highest scores, ascending; the first of equal ones; those without a score lose."""
    values = [-math.inf if score is None else score for score in scores]
    return sorted(sorted(range(len(values)), key=lambda i: -values[i])[:count])
