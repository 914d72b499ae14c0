"""Eta sampling (Hewitt et al., arXiv 2210.15191)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch

from sglang_power.fields import Fraction
from sglang_power.policies.base import (
    Action,
    Columns,
    Policy,
    Row,
    Rows,
    entropy,
    entropy_of,
    softmax,
    top_tokens,
    truncated,
)
from sglang_power.types import FloatArray


class Eta(Policy):
    """Keep `p >= min(epsilon, sqrt(epsilon) * exp(-H))`, and always the top token: where the law is flat, the
    cut is lower than that of epsilon sampling.

    Args:
        epsilon: a probability.
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"epsilon": 0.02}, {"epsilon": 0.3})

    sampler: Literal["eta"] = "eta"
    epsilon: Fraction = 6e-4

    @classmethod
    def act(cls, rows: Rows, params: Columns) -> Action:
        """Keep `p >= min(epsilon, sqrt(epsilon) * exp(-H))`, and the top token."""
        log_p, log_epsilon = rows.log_tempered, params["epsilon"].log()
        log_cut = torch.minimum(log_epsilon, 0.5 * log_epsilon - entropy_of(log_p))
        return Action(keep=(log_p >= log_cut) | top_tokens(rows.logits))

    def law(self, row: Row) -> FloatArray:
        """Return the law on `p >= min(epsilon, sqrt(epsilon) * exp(-H))` and the top token."""
        p = softmax(row.logits, row.temperature)
        cut = min(self.epsilon, math.sqrt(self.epsilon) * math.exp(-entropy(p)))
        return truncated(p, (p >= cut) | (row.logits == row.logits.max()))
