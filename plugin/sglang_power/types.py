"""The nouns of the package.

Owns the records that every layer exchanges. Knows nothing of SGLang, of HTTP or of any algorithm:
everything else imports this module, it imports only numpy. All logarithms are natural, in nats.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

ROW_FIELDS = ("log_p", "log_q", "log_z", "entropy", "varentropy", "gap", "margin")
"""Statistics of the logits row that a token was drawn from, in the order of `Tokens.rows`.

log_p      log p(y_t | c, y_<t), the base law at temperature 1
log_q      log q(y_t | c, y_<t), the law that the token was actually drawn from
log_z      log sum_v p(v)^kappa over the whole vocabulary
entropy    H_t of p;  varentropy  V_t of p;  gap  p(1st) - p(2nd)
margin     p(y_t) - max p(other): the gap where y_t is the most likely token, otherwise negative
"""

LOG_Z = ROW_FIELDS.index("log_z")
REPORTED_STATISTICS = ("log_p", "entropy", "varentropy", "gap")
"""Those of them that say nothing of how the token was drawn: what a plain request may ask for."""


class TokenPolicy(Protocol):
    """A per-step policy as the nouns know it; `sglang_power.policies.Policy` is one."""

    full_support: ClassVar[bool]
    """Whether every token that p allows keeps a positive probability."""

    def token_law(self, log_p: FloatArray, temperature: float) -> FloatArray:
        """[vocab] the law of the next token, from the base law and the request's temperature."""
        ...


@dataclass(frozen=True, slots=True)
class ProposalLaw:
    """The token law q that tokens are drawn from: p^kappa, then a policy, then truncation.

    Without a policy q(v) is proportional to p(v)^kappa on a kept set.

    Args:
        kappa: inverse temperature, > 0.
        top_k, top_p, min_p: truncation of what the policy left, in joint order; None means off.
        policy: reshapes the tempered law before that; None means off.
    """

    kappa: float
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    policy: TokenPolicy | None = None

    @property
    def limited(self) -> bool:
        """True when top-k, top-p or min-p cuts."""
        return self.top_k is not None or self.top_p is not None or self.min_p is not None

    @property
    def truncated(self) -> bool:
        """True when q does not cover the support of p."""
        return self.limited or (self.policy is not None and not self.policy.full_support)


@dataclass(frozen=True, eq=False, slots=True)
class Alternatives:
    """What the rows of generated tokens say of other tokens, where a client asks: log p, nats, temperature 1.

    Args:
        top_ids, top_log_p: [T, k] the k most likely tokens of each row, the most likely one first.
        named_log_p: [T, m] of m tokens that the client names, in its order.
    """

    top_ids: NDArray[np.int32]
    top_log_p: NDArray[np.float32]
    named_log_p: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.top_ids)

    def __add__(self, other: Alternatives) -> Alternatives:
        return Alternatives(
            np.concatenate([self.top_ids, other.top_ids]),
            np.concatenate([self.top_log_p, other.top_log_p]),
            np.concatenate([self.named_log_p, other.named_log_p]),
        )

    def rows(self, start: int, stop: int | None = None) -> Alternatives:
        """Those of the tokens [start, stop)."""
        part = slice(start, stop)
        return Alternatives(self.top_ids[part], self.top_log_p[part], self.named_log_p[part])


@dataclass(frozen=True, eq=False, slots=True)
class Tokens:
    """Generated tokens, each with the statistics of the row that it was drawn from.

    Args:
        ids: token ids, length T.
        rows: [T, len(ROW_FIELDS)] float64, nats (gap, margin: probabilities).
        alternatives: of the same rows; None where nobody asks, and of no tokens.
    """

    ids: tuple[int, ...]
    rows: FloatArray
    alternatives: Alternatives | None = None

    EMPTY: ClassVar[Tokens]

    def __post_init__(self) -> None:
        assert self.rows.shape == (len(self.ids), len(ROW_FIELDS)), (self.rows.shape, len(self.ids))
        assert self.alternatives is None or len(self.alternatives) == len(self.ids)

    @classmethod
    def of(
        cls,
        ids: Sequence[int],
        rows: Sequence[Sequence[float]] | FloatArray,
        alternatives: Alternatives | None = None,
    ) -> Self:
        """Tokens from plain lists; `rows` holds one ROW_FIELDS record per token."""
        table = np.asarray(rows, dtype=np.float64).reshape(len(ids), len(ROW_FIELDS))
        return cls(tuple(ids), table, alternatives if len(ids) else None)

    def __len__(self) -> int:
        return len(self.ids)

    def __add__(self, other: Tokens) -> Tokens:
        parts = [part.alternatives for part in (self, other) if len(part)]
        known = [part for part in parts if part is not None]
        assert len(known) in (0, len(parts)), "some tokens were generated without what others were asked for"
        return Tokens(
            self.ids + other.ids,
            np.concatenate([self.rows, other.rows]),
            functools.reduce(operator.add, known) if known else None,
        )

    def first(self, count: int) -> Tokens:
        """The first `count` tokens."""
        return Tokens.of(self.ids[:count], self.rows[:count], self._alternatives(0, count))

    def after(self, count: int) -> Tokens:
        """What follows the first `count` tokens."""
        return Tokens.of(self.ids[count:], self.rows[count:], self._alternatives(count))

    def _alternatives(self, start: int, stop: int | None = None) -> Alternatives | None:
        return None if self.alternatives is None else self.alternatives.rows(start, stop)

    @property
    def log_p(self) -> FloatArray:
        return self.rows[:, 0]

    @property
    def log_q(self) -> FloatArray:
        return self.rows[:, 1]

    @property
    def log_z(self) -> FloatArray:
        return self.rows[:, LOG_Z]

    @property
    def entropy(self) -> FloatArray:
        return self.rows[:, 3]

    @property
    def margin(self) -> FloatArray:
        return self.rows[:, 6]


Tokens.EMPTY = Tokens((), np.empty((0, len(ROW_FIELDS))))


LAUNCH_STEPS = 1
"""What the launch of an engine call, its prefill, adds to the depth."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a run cost. `decoded`, `prefilled` and `wasted` count tokens.

    decoded    tokens produced by decode steps;  prefilled  prompt tokens computed, not cached
    wasted     decoded tokens that no decision used;  children  engine calls
    depth      steps that had to follow one another: of the calls that waited for each other, the launches
               and the decoded tokens
    """

    decoded: int = 0
    prefilled: int = 0
    wasted: int = 0
    depth: int = 0
    children: int = 0

    @classmethod
    def of_call(cls, decoded: int, *, prefilled: int = 0, wasted: int = 0) -> Self:
        """The cost of one engine call: a launch, and then one token after the other."""
        return cls(decoded, prefilled, wasted, depth=LAUNCH_STEPS + decoded, children=1)

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.decoded + other.decoded,
            self.prefilled + other.prefilled,
            self.wasted + other.wasted,
            self.depth + other.depth,
            self.children + other.children,
        )


def in_parallel(parts: Iterable[Usage]) -> Usage:
    """The cost of calls that run at the same time: everything adds up but the depth."""
    each = list(parts)
    whole = sum(each, start=Usage())
    return replace(whole, depth=max((part.depth for part in each), default=0))


@dataclass(frozen=True, slots=True)
class Continuation:
    """An engine's answer: the tokens that follow a prefix.

    Args:
        tokens: the new tokens, up to and including a stop.
        finished: the sequence ended with a stop (end-of-sequence, stop token, completed stop string).
        cut_short: generation ended before a stop and before the horizon, because it was told that the
            proposal can no longer be accepted, that a trigger has fired or that the deadline has passed.
        usage: what this call cost.
    """

    tokens: Tokens
    finished: bool
    cut_short: bool
    usage: Usage
