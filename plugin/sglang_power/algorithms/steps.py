"""The records of a Metropolis-Hastings chain: its state, what it asks its driver for, what a step tells.

`mh` makes them, a driver answers them. `Info` holds the proposal as proposed, every term and the decision.
"""

from __future__ import annotations

from dataclasses import dataclass

from sglang_power.algorithms.acceptance import HastingsTerms
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.types import Tokens


@dataclass(frozen=True, slots=True)
class ChainState:
    """What the next step needs.

    Args:
        tokens: the current sequence.
        finished: it ends with a stop.
        stage: 1..K;  stage_step: steps done in this stage;  step: steps done in all.
        frozen: F, leading tokens that no cut may touch any more.
        reward: R of the tokens, once it is known.
        untilted_at: the number of steps after which the reward was given up; None where it acts.
    """

    tokens: Tokens
    finished: bool
    stage: int = 1
    stage_step: int = 0
    step: int = 0
    frozen: int = 0
    reward: float | None = None
    untilted_at: int | None = None


@dataclass(frozen=True, slots=True)
class Extend:
    """Continue the unfinished state with q."""

    call: ContinuationCall


@dataclass(frozen=True, slots=True)
class Propose:
    """Regenerate the suffix behind a cut.

    Args:
        step: it decides this one.
        cut: m, tokens kept.
        log_u: log of the uniform that decides.
        call: the continuation that makes the proposal, or the first of several tries.
        others: the continuations of the other tries.
        pick: the uniform that picks one of several tries.
    """

    step: int
    cut: int
    log_u: float
    call: ContinuationCall
    others: tuple[ContinuationCall, ...] = ()
    pick: float = 0.0

    @property
    def calls(self) -> tuple[ContinuationCall, ...]:
        """Of all tries."""
        return (self.call, *self.others)

    @property
    def longest(self) -> int:
        """Tokens that generating it may take, all tries together."""
        return len(self.calls) * (self.call.horizon - self.cut)

    def is_drawn_as(self, other: Propose) -> bool:
        """Whether generating either of two proposals for one step, of two states of one stage, is the same.

        Both have the same random numbers, so it is where they keep the same tokens.
        """
        assert self.step == other.step
        return self.call.prefix == other.call.prefix


@dataclass(frozen=True, slots=True)
class ScoreState:
    """Find the reward of the state, which is whole."""


@dataclass(frozen=True, slots=True)
class Done:
    """The schedule has ended; the state is the answer."""


Action = Extend | ScoreState | Propose | Done


@dataclass(frozen=True, slots=True)
class Try:
    """One of several proposals of a step, as it was proposed, and its own log ratio."""

    proposal: Tokens
    finished: bool
    log_ratio: float


@dataclass(frozen=True, slots=True)
class Info:
    """One step, for people: what stood there, the proposal as proposed, every term, the decision.

    Of several tries, `proposal` is the one that was picked, `terms` are its own, and `log_ratio` is that of
    the multiple-try rule; `tries` are all of them, and `picked` says which one it was.
    """

    stage: int
    step: int
    cut: int
    current_ids: tuple[int, ...]
    proposal: Tokens
    proposal_finished: bool
    terms: HastingsTerms
    log_ratio: float
    log_u: float
    accepted: bool
    early_rejected: bool
    tries: tuple[Try, ...] = ()
    picked: int = 0

    @property
    def current_length(self) -> int:
        """Tokens of the sequence that the proposal competed with."""
        return len(self.current_ids)
