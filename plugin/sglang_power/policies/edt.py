"""Entropy-based dynamic temperature (Zhang et al., arXiv 2403.14541)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from sglang_power.fields import PositiveFloat
from sglang_power.policies.base import (
    Action,
    Columns,
    Policy,
    Row,
    Rows,
    entropy,
    entropy_of,
    inverse,
    softmax,
)
from sglang_power.types import FloatArray

ENTROPY_FLOOR = 1e-6
"""Nats; the exponent theta/H has no limit at H = 0."""

LARGEST_EXPONENT = 700.0
"""exp of it is finite in float64, and far above every temperature."""


class EDT(Policy):
    """T = T0 * base^(theta / H): cold where the model is sure. T0 is the request's temperature.

    Args:
        theta: nats; larger is colder.
        base: N of the paper, below 1.
    """

    full_support: ClassVar[bool] = True
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"theta": 1.0, "base": 0.5})

    sampler: Literal["edt"] = "edt"
    theta: PositiveFloat = 0.1
    base: PositiveFloat = 0.8

    @classmethod
    def act(cls, rows: Rows, params: Columns) -> Action:
        """Return `T0 * base^(theta / H)` for every row."""
        floored = entropy_of(rows.log_p).clamp_min(ENTROPY_FLOOR)
        return Action(kappa=inverse(params["base"] ** (params["theta"] / floored) / rows.kappa))

    def law(self, row: Row) -> FloatArray:
        """Return the law at `T0 * base^(theta / H)`."""
        floored = max(entropy(softmax(row.logits)), ENTROPY_FLOOR)
        factor = math.exp(min(self.theta / floored * math.log(self.base), LARGEST_EXPONENT))
        return softmax(row.logits, row.temperature * factor)
