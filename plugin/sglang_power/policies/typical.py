"""Locally typical sampling (Meister et al., arXiv 2202.00666)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import model_validator

from sglang_power.fields import NonNegativeFloat, Probability, conflict
from sglang_power.policies.base import (
    Action,
    Columns,
    Policy,
    Row,
    Rows,
    entropy,
    entropy_of,
    softmax,
    top_mass,
    top_tokens,
    truncated,
)
from sglang_power.types import FloatArray


class Typical(Policy):
    """Keep the fewest tokens nearest to H in `|-log p - H|` whose mass reaches `mass`, and all that tie with
    the last. The top token may be left out: it can be untypically likely.

    Args:
        mass: tau of the paper.
        one_sided: keep `-log p <= H + margin` instead (ours): whatever is not untypically unlikely.
        margin: nats; with one_sided only.
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"mass": 0.2},
        {"one_sided": True, "margin": 0.25},
    )

    sampler: Literal["typical"] = "typical"
    mass: Probability = 0.9
    one_sided: bool = False
    margin: NonNegativeFloat = 0.5

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.one_sided and "mass" in self.model_fields_set:
            raise conflict("mass", "mass has no part in the one-sided rule", "Set margin, or leave it out")
        if not self.one_sided and "margin" in self.model_fields_set:
            raise conflict("margin", "margin belongs to the one-sided rule", "Set one_sided to true, or mass")
        return self

    @property
    def parameters(self) -> dict[str, Any]:
        """Those of the rule in force, so that they make a valid request again."""
        return self.model_dump(exclude={"sampler", "seed", "mass" if self.one_sided else "margin"})

    @classmethod
    def act(cls, rows: Rows, params: Columns) -> Action:
        """Keep the tokens nearest to the entropy up to the mass, or by the one-sided rule."""
        log_p = rows.log_tempered
        excess = -log_p - entropy_of(log_p)
        nearest = top_mass(-excess.abs(), log_p.exp(), params["mass"])
        # At margin 0 a flat row is a matter of rounding.
        not_above = (excess <= params["margin"]) | top_tokens(rows.logits)
        return Action(keep=torch.where(params["one_sided"], not_above, nearest))

    def law(self, row: Row) -> FloatArray:
        """Return the law on the tokens nearest to the entropy up to the mass, or by the one-sided rule."""
        p = softmax(row.logits, row.temperature)
        surprise = np.full_like(p, np.inf)
        surprise[p > 0] = -np.log(p[p > 0])
        if self.one_sided:
            top = row.logits == row.logits.max()
            return truncated(p, (surprise <= entropy(p) + self.margin) | top)
        distance = np.abs(surprise - entropy(p))
        order = np.argsort(distance, kind="stable")
        kept = int(np.searchsorted(np.cumsum(p[order]), self.mass))
        return truncated(p, distance <= distance[order[min(kept, len(p) - 1)]])
