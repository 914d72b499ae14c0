"""AdapT sampling for code ("Hot or Cold?", Zhu et al., arXiv 2309.02772)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import model_validator

from sglang_power.fields import PositiveFloat, conflict
from sglang_power.policies.base import Action, Columns, Policy, Row, Rows, inverse, softmax
from sglang_power.types import FloatArray


class Adapt(Policy):
    """`T = T0 * hot` for the first token of a line, where code is hard to foresee, else `T0 * cold`. T0 is
    the request's temperature. Tokens of spaces and tabs after the newline, the indentation, do not end that:
    they are hot, and so is the token behind them.

    Args:
        hot: a of the paper.
        cold: b of the paper, below a.
    """

    full_support: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"ends_line"})
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"hot": 2.0, "cold": 0.2})

    sampler: Literal["adapt"] = "adapt"
    hot: PositiveFloat = 1.0
    cold: PositiveFloat = 0.5

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.hot <= self.cold:
            if "hot" in self.model_fields_set:
                raise conflict("hot", f"not above cold = {self.cold:g}", "Choose hot > cold")
            raise conflict("cold", f"not below hot = {self.hot:g}", "Choose hot > cold")
        return self

    @classmethod
    def act(cls, rows: Rows, params: Columns) -> Action:
        """Return the hot temperature where a line begins, and the cold one elsewhere."""
        assert rows.ends_line is not None
        return Action(kappa=inverse(torch.where(rows.ends_line, params["hot"], params["cold"]) / rows.kappa))

    def law(self, row: Row) -> FloatArray:
        """Return the law at the hot temperature where a line begins, at the cold one elsewhere."""
        return softmax(row.logits, row.temperature * (self.hot if row.ends_line else self.cold))
