"""Epsilon sampling (Hewitt et al., arXiv 2210.15191)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from sglang_power.fields import Fraction
from sglang_power.policies.base import Action, Columns, Policy, Row, Rows, softmax, top_tokens, truncated
from sglang_power.types import FloatArray


class Epsilon(Policy):
    """Keep `p >= epsilon`, and always the top token.

    Args:
        epsilon: a probability.
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"epsilon": 0.02}, {"epsilon": 0.2})

    sampler: Literal["epsilon"] = "epsilon"
    epsilon: Fraction = 3e-4

    @classmethod
    def act(cls, rows: Rows, params: Columns) -> Action:
        """Keep `p >= epsilon`, and the top token."""
        return Action(keep=(rows.log_tempered >= params["epsilon"].log()) | top_tokens(rows.logits))

    def law(self, row: Row) -> FloatArray:
        """Return the law on `p >= epsilon` and the top token."""
        p = softmax(row.logits, row.temperature)
        return truncated(p, (p >= self.epsilon) | (row.logits == row.logits.max()))
