"""What every sampler of whole answers may be told."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from sglang_power.fields import Positive, Seed
from sglang_power.request.needs import Needs


class WholeAnswerRequest(BaseModel):
    """Base of the request models of samplers of whole answers; subclasses add `sampler: Literal[...]`.

    Args:
        seed: of everything random; below 2^64; random, and echoed, where absent.
        max_total_tokens: decoded tokens of the request.
        deadline_ms: from the request's arrival, milliseconds; the best answer so far is returned then.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    seed: Seed | None = None
    max_total_tokens: Positive | None = None
    deadline_ms: Positive | None = None

    @classmethod
    def name(cls) -> str:
        """Return how requests name the sampler."""
        return str(cls.model_fields["sampler"].default)

    @property
    def needs(self) -> Needs:
        """Return what it takes to serve the request."""
        return Needs()
