"""What a request for `lookahead` may say."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sglang_power.algorithms.lookahead import LookaheadConfig
from sglang_power.fields import (
    MAX_COUNT,
    Exponent,
    FiniteFloat,
    Positive,
    Probability,
    Temperature,
    conflict,
)
from sglang_power.request.needs import Capped, Needs
from sglang_power.request.own_law import OwnLawRequest
from sglang_power.types import ProposalLaw

OF_SEVERAL = ("rollouts", "rollout_tokens", "block_size")
"""Parameters that act where there are several candidates."""


class LookaheadRequest(OwnLawRequest):
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
    alpha: Exponent = 4.0
    candidates: Positive = 8
    rollouts: Positive = 8
    rollout_tokens: Positive = 192
    block_size: Positive = 192
    proposal_temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=-1, le=MAX_COUNT)] | None = None
    min_p: Annotated[FiniteFloat, Field(ge=0.0, le=1.0)] | None = None

    @model_validator(mode="after")
    def _what_acts(self) -> Self:
        if self.top_k == 0:
            raise conflict("top_k", "top_k must be -1 (off) or at least 1", "Use -1 to switch it off")
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

    @property
    def tau(self) -> float:
        """The proposal temperature in force."""
        return 1.0 / self.alpha if self.proposal_temperature is None else self.proposal_temperature

    @property
    def law(self) -> ProposalLaw:
        """The proposal law; a truncation that keeps everything is none."""
        return ProposalLaw(
            kappa=self.alpha if self.proposal_temperature is None else 1.0 / self.proposal_temperature,
            top_k=self.top_k if self.top_k not in (None, -1) else None,
            top_p=self.top_p if self.top_p not in (None, 1.0) else None,
            min_p=self.min_p if self.min_p not in (None, 0.0) else None,
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
        shown = self.model_dump(exclude=hidden)
        return {**shown, "proposal_temperature": self.tau, "max_new_tokens": horizon}
