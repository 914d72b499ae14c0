"""KL-divergence guided temperature (Chang et al., arXiv 2306.01286)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from sglang_power.fields import PositiveFloat, TokenId, conflict
from sglang_power.policies.base import Action, Columns, Policy, Row, Rows, inverse, softmax
from sglang_power.types import FloatArray


class KLGuided(Policy):
    """`T = T0 * 0.5^(KL(p_with || p_without) / sigma)`: cold where the answer hangs on the source. p_with is
    the base law, p_without that of the same answer behind a prompt without the source; T0 is the request's
    temperature. A token that only p_with allows makes KL infinite and the draw greedy.

    Args:
        sigma: nats of divergence that halve the temperature.
        prompt_without: the other prompt as text, or
        ids_without: as token ids; one of the two is required.
    """

    full_support: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"twin"})
    in_proposals: ClassVar[bool] = False
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"prompt_without": "Answer:"},
        {"sigma": 0.2, "ids_without": [0]},
        {"sigma": 20.0, "ids_without": [0]},
    )

    sampler: Literal["kl_guided"] = "kl_guided"
    sigma: PositiveFloat = 1.0
    prompt_without: Annotated[str, Field(min_length=1)] | None = None
    ids_without: Annotated[list[TokenId], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if self.prompt_without is None and self.ids_without is None:
            hint = "Give the prompt without the source, as text or as ids_without"
            raise conflict("prompt_without", "prompt_without or ids_without is required", hint)
        if self.prompt_without is not None and self.ids_without is not None:
            problem = "prompt_without and ids_without exclude each other"
            raise conflict("ids_without", problem, "Name one of the two")
        return self

    @property
    def twin_prompt(self) -> tuple[str, str | list[int]] | None:
        """The prompt without the source."""
        if self.ids_without is not None:
            return "ids_without", self.ids_without
        return None if self.prompt_without is None else ("prompt_without", self.prompt_without)

    @property
    def token_ids(self) -> dict[str, list[int]]:
        """The ids of that prompt, where it is given so."""
        return {"ids_without": self.ids_without or []}

    @classmethod
    def act(cls, rows: Rows, params: Columns) -> Action:
        """Return `T0 * 0.5^(KL / sigma)` for every row, the divergence being that from its twin."""
        assert rows.twin is not None
        log_p, log_without = rows.log_p, rows.twin.log_softmax(dim=-1)
        impossible = log_p == -math.inf
        terms = log_p.exp() * (log_p - log_without)
        terms = terms.masked_fill((log_without == -math.inf) & ~impossible, math.inf)
        divergence = terms.masked_fill(impossible, 0.0).sum(dim=-1, keepdim=True).clamp_min(0.0)
        halved: torch.Tensor = 0.5 ** (divergence / params["sigma"])
        return Action(kappa=inverse(halved / rows.kappa))

    def law(self, row: Row) -> FloatArray:
        """Return the law at `T0 * 0.5^(KL / sigma)`."""
        assert row.twin is not None
        return softmax(row.logits, row.temperature * 0.5 ** (_divergence(row.logits, row.twin) / self.sigma))


def _divergence(logits: FloatArray, without: FloatArray) -> float:
    support = np.isfinite(logits)
    log_p, log_without = _log_softmax(logits)[support], _log_softmax(without)[support]
    if not np.isfinite(log_without).all():
        return math.inf
    return max(float(np.exp(log_p) @ (log_p - log_without)), 0.0)


def _log_softmax(logits: FloatArray) -> FloatArray:
    shifted = logits - logits.max()
    return np.asarray(shifted - math.log(np.exp(shifted).sum()), dtype=np.float64)
