"""Dynamic temperature as in llama.cpp (ggml-org/llama.cpp, pull request 4972)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import model_validator

from sglang_power.fields import PositiveFloat, conflict
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


class DynaTemp(Policy):
    """`T = T0 * (t_min + (t_max - t_min) * (H / log n)^exponent)`, H and n the entropy and the support's size
    of the base law: hot where the model is unsure. T0 is the request's temperature; n = 1 gives t_min.

    Args:
        t_min: where H = 0.
        t_max: where the law is flat.
        exponent: above 1, hot only where the law is nearly flat.
    """

    full_support: ClassVar[bool] = True
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"t_min": 0.1, "t_max": 3.0, "exponent": 2.0},
        {"t_min": 0.3, "t_max": 0.3},
    )

    sampler: Literal["dynatemp"] = "dynatemp"
    t_min: PositiveFloat = 0.5
    t_max: PositiveFloat = 1.5
    exponent: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.t_min > self.t_max:
            if "t_min" in self.model_fields_set:
                raise conflict("t_min", f"above t_max = {self.t_max:g}", "Choose t_min <= t_max")
            raise conflict("t_max", f"below t_min = {self.t_min:g}", "Choose t_min <= t_max")
        return self

    @classmethod
    def act(cls, rows: Rows, params: Columns) -> Action:
        """Return `T0 * (t_min + (t_max - t_min) * (H / log n)^exponent)` for every row."""
        support = rows.logits.isfinite().sum(dim=-1, keepdim=True, dtype=rows.logits.dtype).clamp_min(2)
        flatness = (entropy_of(rows.log_p) / support.log()).clamp(0.0, 1.0)
        t_min, t_max = params["t_min"], params["t_max"]
        return Action(kappa=inverse((t_min + (t_max - t_min) * flatness ** params["exponent"]) / rows.kappa))

    def law(self, row: Row) -> FloatArray:
        """Return the law at `T0 * (t_min + (t_max - t_min) * (H / log n)^exponent)`."""
        support = np.isfinite(row.logits).sum()
        flatness = entropy(softmax(row.logits)) / math.log(support) if support > 1 else 0.0
        share = min(max(flatness, 0.0), 1.0) ** self.exponent
        return softmax(row.logits, row.temperature * (self.t_min + (self.t_max - self.t_min) * share))
