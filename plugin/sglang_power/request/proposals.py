"""What requests may say to samplers of p(y)^alpha about the law that they draw tokens from."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from typing import Annotated, Any, Self

from pydantic import Field, InstanceOf, field_validator, model_validator

from sglang_power.fields import MAX_COUNT, Exponent, FiniteFloat, Probability, Temperature, conflict
from sglang_power.policies import Policy
from sglang_power.request.needs import ForcedTokens
from sglang_power.request.nested import row_law_policy
from sglang_power.request.own_law import OwnLawRequest
from sglang_power.types import ProposalLaw


class ProposalRequest(OwnLawRequest):
    """Base of samplers of p(y)^alpha that draw from a proposal law.

    Args:
        alpha: exponent, 1 to 1,000.
        proposal_temperature: tau, 1e-6 to 1e6; 1/alpha where absent.
        top_p, top_k, min_p: truncation of the proposal, in joint order.
    """

    alpha: Exponent = 4.0
    proposal_temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=-1, le=MAX_COUNT)] | None = None
    min_p: Annotated[FiniteFloat, Field(ge=0.0, le=1.0)] | None = None

    @model_validator(mode="after")
    def _truncation_that_keeps_tokens(self) -> Self:
        if self.top_k == 0:
            raise conflict("top_k", "top_k must be -1 (off) or at least 1", "Use -1 to switch it off")
        return self

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

    def shown(self, hidden: Set[str]) -> dict[str, Any]:
        """Return the parameters in force but for some of them."""
        return {**self.model_dump(exclude=set(hidden)), "proposal_temperature": self.tau}


class DraftedRequest(ProposalRequest):
    """Base of those that may begin with a draft, and may shape the proposal by a policy.

    Args:
        proposal_policy: a per-step policy for proposals, as a request would write it; it measures the law at
            the proposal temperature, before truncation.
        initial_text, initial_ids: the draft.
    """

    proposal_policy: InstanceOf[Policy] | None = None
    initial_text: Annotated[str, Field(min_length=1)] | None = None
    initial_ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None

    @field_validator("proposal_policy", mode="before")
    @classmethod
    def _parsed(cls, value: object) -> object:
        return row_law_policy("proposal_policy", value) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _one_draft(self) -> Self:
        if self.initial_text is not None and self.initial_ids is not None:
            raise conflict(
                "initial_ids", "initial_text and initial_ids exclude each other", "Name one of the two"
            )
        return self

    @property
    def drafted(self) -> bool:
        """Whether there is a draft."""
        return self.initial_ids is not None or self.initial_text is not None

    @property
    def draft(self) -> ForcedTokens | None:
        """The draft as tokens that answers begin with."""
        if self.initial_ids is not None:
            return ForcedTokens("initial_ids", tuple(self.initial_ids), whole=True)
        return None if self.initial_text is None else ForcedTokens("initial_text", self.initial_text, True)

    @property
    def law(self) -> ProposalLaw:
        """The proposal law; a truncation that keeps everything is none."""
        return replace(super().law, policy=self.proposal_policy)

    def shown(self, hidden: Set[str]) -> dict[str, Any]:
        """Return the parameters in force but for some of them; of a draft, only whether there is one."""
        told = super().shown({*hidden, "initial_text", "initial_ids"})
        if self.proposal_policy is not None:
            policy = self.proposal_policy
            told["proposal_policy"] = {"sampler": policy.name(), **policy.parameters}
        return {**told, "draft": self.drafted}
