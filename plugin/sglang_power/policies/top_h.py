"""Top-H decoding (arXiv 2509.02510): truncation by bounded entropy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from sglang_power.fields import Fraction
from sglang_power.policies.base import (
    Action,
    Columns,
    Policy,
    Row,
    Rows,
    entropy,
    running_sum,
    softmax,
    truncated,
)
from sglang_power.types import FloatArray


class TopH(Policy):
    """Keep the longest prefix of the ranking by p whose entropy, renormalised, is at most `alpha * H(p)`; at
    least the top token, and all that tie with the last. The entropy of prefixes grows with their length.

    Args:
        alpha: share of the entropy.
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"alpha": 0.8})

    sampler: Literal["top_h"] = "top_h"
    alpha: Fraction = 0.4

    @classmethod
    def act(cls, rows: Rows, params: Columns) -> Action:
        """Keep the longest prefix of low entropy; that of one with mass S is `log S - (sum p log p) / S`."""
        ranked = rows.log_tempered.sort(dim=-1, descending=True).values
        p = ranked.exp()
        mass = running_sum(p)
        prefix = mass.log() + running_sum(-p * ranked.masked_fill(ranked == -math.inf, 0.0)) / mass
        kept = (prefix <= params["alpha"] * prefix[:, -1:]).sum(dim=-1, keepdim=True)
        return Action(keep=rows.log_tempered >= ranked.gather(1, (kept - 1).clamp_min(0)))

    def law(self, row: Row) -> FloatArray:
        """Return the law on the longest prefix of the ranking whose entropy is at most `alpha * H(p)`."""
        p = softmax(row.logits, row.temperature)
        ranked = np.sort(p)[::-1]
        prefixes = [entropy(ranked[:n] / ranked[:n].sum()) for n in range(2, len(p) + 1)]
        kept = next((n for n, h in enumerate(prefixes, 1) if h > self.alpha * entropy(p)), len(p))
        return truncated(p, p >= ranked[kept - 1])
