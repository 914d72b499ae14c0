"""What a request for `lookahead` may say."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import model_validator

from sglang_power.algorithms.lookahead import LookaheadConfig
from sglang_power.fields import (
    Positive,
    conflict,
)
from sglang_power.request.needs import Capped, Needs
from sglang_power.request.proposals import ProposalRequest

OF_SEVERAL = ("rollouts", "rollout_tokens", "block_size")
"""Parameters that act where there are several candidates."""


class LookaheadRequest(ProposalRequest):
    """`sampler="lookahead"`: one answer near p(y)^alpha, block by block, each weighed by what may follow it.

    Scalable Power Sampling (arXiv 2601.21590; its defaults). Not the policy "lookahead" of `branch`, which
    forks where a trigger fires and keeps the branch of the best rollout.

    Args:
        alpha: exponent, 1 to 1,000.
        candidates: K, drawn for each block.
        rollouts: M, behind each candidate that has not ended.
        rollout_tokens: H, at most, of a rollout.
        block_size: B, tokens of a candidate.
        proposal_temperature: tau, 1e-6 to 1e6, of candidates and rollouts; 1/alpha where absent.
        top_p, top_k, min_p: truncate that law, joint order.
    """

    sampler: Literal["lookahead"] = "lookahead"
    candidates: Positive = 8
    rollouts: Positive = 8
    rollout_tokens: Positive = 192
    block_size: Positive = 192

    @model_validator(mode="after")
    def _what_acts(self) -> Self:
        for field in OF_SEVERAL if self.candidates == 1 else ():
            if field in self.model_fields_set:
                raise conflict(field, "not used with candidates=1", "Raise candidates, or leave it out")
        return self

    @property
    def needs(self) -> Needs:
        """Return what it takes to serve the request; an error names the larger one of two factors."""
        most = "rollouts" if self.rollouts > self.candidates else "candidates"
        beside = Capped(most, getattr(self, most), "max_width", count=self.candidates * self.rollouts)
        return Needs(
            ignores_temperature=self.on_temperature == "ignore",
            capped=() if self.candidates == 1 else (beside,),
        )

    def lookahead_config(self, horizon: int) -> LookaheadConfig:
        """The configuration of a run for L = horizon; a single candidate needs no blocks."""
        return LookaheadConfig(
            alpha=self.alpha,
            law=self.law,
            horizon=horizon,
            candidates=self.candidates,
            rollouts=self.rollouts,
            rollout_tokens=self.rollout_tokens,
            block_size=horizon if self.candidates == 1 else self.block_size,
        )

    def in_force(self, horizon: int) -> dict[str, Any]:
        """The parameters in force, for the response."""
        hidden = {"sampler", "seed", "on_temperature", *(OF_SEVERAL if self.candidates == 1 else ())}
        return {**self.shown(hidden), "max_new_tokens": horizon}
