"""Exact early rejection: stop what is drawn as soon as it is certain that it will be rejected.

Proposals of a chain (EarlyRejection). u is drawn first. If 1 <= kappa <= alpha then log w_t <= 0 for every
token (truncation only lowers it), and cut(m|y') can only fall as y' grows, so with m fixed the running bound

    sum log w' so far + log cut(m | y' so far)

never rises. Once it is below  log u + sum log w(old suffix) + log cut(m|y)  by a margin, the full ratio
is below log u. Sums in float64; the margin covers their rounding. Decisions are identical with and
without it.

Trials of rejection sampling (TrialRejection, `perfect`): accepted with probability exp(sum z), z_t <= 0, so
once sum z is below log u by the margin, a trial is lost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from sglang_power.algorithms.cuts import CutLaw, EntropyCut, UniformCut, mixture
from sglang_power.types import LOG_Z, FloatArray, ProposalLaw

MARGIN = 1e-3
"""Nats. Sums of 3,000 terms in float64 are good to 1e-9; the statistics themselves are float32."""


@dataclass(frozen=True, slots=True)
class EarlyRejection:
    """What a generator needs in order to know that a proposal is lost.

    Args:
        threshold: log u + sum log w(old suffix) + log cut(m|y), nats.
        alpha: exponent of the target.
        cut: the cut law.
        count: number of possible cuts below m (m minus the frozen tokens).
        total_gain: sum of the gains g below m.
        previous_entropy: H_{m-1}; 0 where m = 0.
    """

    threshold: float
    alpha: float
    cut: CutLaw
    count: int
    total_gain: float
    previous_entropy: float

    def monitor(self) -> RejectionMonitor:
        """Return what watches one proposal."""
        return RejectionMonitor(self)

    def behind(self, rows: FloatArray) -> None:  # noqa: ARG002  (of the protocol)
        """A proposal that was not lost so far is generated to its end."""
        return

    def flat(self) -> dict[str, Any]:
        """Return the rule as scalars."""
        return {
            "threshold": self.threshold,
            "alpha": self.alpha,
            "cut_beta": self.cut.beta if isinstance(self.cut, EntropyCut) else None,
            "cut_epsilon": self.cut.epsilon,
            "count": self.count,
            "total_gain": self.total_gain,
            "previous_entropy": self.previous_entropy,
        }

    @classmethod
    def of_flat(cls, flat: dict[str, Any]) -> Self:
        """Return the rule that `flat` wrote."""
        beta = flat.get("cut_beta")
        cut: CutLaw = UniformCut() if beta is None else EntropyCut(beta, flat["cut_epsilon"])
        rest = {
            name: flat[name] for name in ("threshold", "alpha", "count", "total_gain", "previous_entropy")
        }
        return cls(cut=cut, **rest)


def is_exact(alpha: float, law: ProposalLaw) -> bool:
    """Whether the running bound is an upper bound: if and only if 1 <= kappa <= alpha, for the whole law.

    A policy may temper each row differently, so with one the answer is no.

    A relative 1e-9 is allowed for: kappa = 1/(1/alpha) is rounded, and MARGIN covers that.
    """
    return law.policy is None and 1.0 - 1e-9 <= law.kappa <= alpha * (1.0 + 1e-9)


class RejectionMonitor:
    """Watches one proposal, one committed token at a time."""

    def __init__(self, rule: EarlyRejection) -> None:
        self._rule = rule
        self._log_w = 0.0
        self._gain_at_cut: float | None = None
        self._total_gain = rule.total_gain
        self._previous = rule.previous_entropy
        self._count = rule.count
        self._seen = 0

    def ends(self, index: int, record: Sequence[float]) -> bool:
        """Add the next token's row; True once the proposal is certain to be rejected."""
        if index < self._seen:
            return False
        self._seen = index + 1
        log_p, log_q, _, entropy, *_ = record
        return self.rejects(log_p, log_q, entropy)

    def rejects(self, log_p: float, log_q: float, entropy: float) -> bool:
        """Add the next token's row; True once the proposal is certain to be rejected."""
        rule = self._rule
        self._log_w += rule.alpha * log_p - log_q
        gain = rule.cut.gain(entropy, self._previous)
        if self._gain_at_cut is None:
            self._gain_at_cut = gain
        self._total_gain += gain
        self._previous = entropy
        self._count += 1
        log_cut = mixture(rule.cut.epsilon, self._gain_at_cut, self._total_gain, self._count)
        return self._log_w + log_cut < rule.threshold - MARGIN


@dataclass(frozen=True, slots=True)
class TrialRejection:
    """What a generator needs in order to know that a trial of rejection sampling is lost.

    Args:
        threshold: log u, nats.
    """

    threshold: float

    def monitor(self) -> TrialMonitor:
        """Return what watches one trial."""
        return TrialMonitor(self.threshold)

    def behind(self, rows: FloatArray) -> Self:
        """Return the rule for the rest of a trial."""
        return dataclasses.replace(self, threshold=self.threshold - float(rows[:, LOG_Z].sum()))

    def flat(self) -> dict[str, Any]:
        """Return the rule as scalars."""
        return {"threshold": self.threshold}

    @classmethod
    def of_flat(cls, flat: dict[str, Any]) -> Self:
        """Return the rule that `flat` wrote."""
        return cls(flat["threshold"])


class TrialMonitor:
    """Watches one trial, one committed token at a time."""

    def __init__(self, threshold: float) -> None:
        self._left = MARGIN - threshold
        self._seen = 0

    def ends(self, index: int, record: Sequence[float]) -> bool:
        """Add the next token's row; True once the trial is certain to be rejected."""
        if index < self._seen:
            return False
        self._seen = index + 1
        self._left += record[LOG_Z]
        return self._left < 0.0
