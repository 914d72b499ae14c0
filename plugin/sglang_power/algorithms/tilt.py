"""The reward's share of the target: exp(lambda * R(y)), on whole answers.

pi(y) proportional to p(y)^alpha * exp(lambda * R(y)). A reward is of a whole answer, so it acts in the last
stage only, all of whose states are whole. Pure: what R is, a driver asks elsewhere and hands in.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from sglang_power.algorithms.acceptance import HastingsTerms


@dataclass(frozen=True, slots=True)
class Tilt:
    """How a reward tilts the target.

    Args:
        weight: lambda, finite; below 0 it prefers low rewards.
        upper_bound: no R(y) is above it; None where no bound is known.
    """

    weight: float
    upper_bound: float | None = None

    @property
    def bounded(self) -> bool:
        """Whether lambda * R is bounded from above, by lambda * upper_bound."""
        return self.weight >= 0.0 and self.upper_bound is not None

    def log_factor(self, reward: float) -> float:
        """lambda * R(y), nats."""
        return self.weight * reward

    @property
    def log_bound(self) -> float:
        """The largest possible log factor; only where `bounded`."""
        assert self.upper_bound is not None
        assert self.weight >= 0.0
        return self.weight * self.upper_bound

    def added(self, terms: HastingsTerms, proposal: float | None, current: float) -> HastingsTerms:
        """The terms with those of the reward.

        Args:
            terms: without them.
            proposal: R(y'); None for the bound, of a proposal that was never brought to its end.
            current: R(y).
        """
        log_proposal = self.log_bound if proposal is None else self.log_factor(proposal)
        return dataclasses.replace(
            terms, log_tilt_proposal=log_proposal, log_tilt_current=self.log_factor(current)
        )
