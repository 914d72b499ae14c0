"""Min-k sampling (Ding et al., arXiv 2604.11012): cut at the steepest fall of the sorted logits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from sglang_power.fields import NonNegativeFloat
from sglang_power.policies.base import Action, Columns, Policy, Row, Rows, first_ranked, softmax, truncated
from sglang_power.types import FloatArray


class MinK(Policy):
    """Of the sorted finite logits `l_1 >= l_2 >= ...` keep ranks 1 to the semantic cliff
    `k = argmax_i i^-decay * (l_i - l_{i+1})` (the first, if several), and all that tie with rank k; the same
    set at any temperature.

    The abstract says "position-weighted relative decay rate"; the exact weight could not be consulted, and
    `i^-decay` is our reading.

    Args:
        decay: larger favours short rankings.
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"decay": 0.25}, {"decay": 3.0})

    sampler: Literal["min_k"] = "min_k"
    decay: NonNegativeFloat = 1.0

    @classmethod
    def act(cls, rows: Rows, params: Columns) -> Action:
        """Keep the ranks up to the semantic cliff of every row."""
        ranked = rows.logits.sort(dim=-1, descending=True).values
        # A rank after the last one, so that a vocabulary of one token has a fall too.
        below = torch.nn.functional.pad(ranked[:, 1:], (0, 1), value=-math.inf)
        rank = torch.arange(1, ranked.shape[1] + 1, device=ranked.device, dtype=ranked.dtype)
        fall = (ranked - below) * rank ** -params["decay"]
        cliff = fall.masked_fill(below == -math.inf, -1.0).argmax(dim=-1, keepdim=True)
        return Action(keep=first_ranked(rows.logits, cliff + 1))

    def law(self, row: Row) -> FloatArray:
        """Return the law on the ranks up to the semantic cliff."""
        ranked = np.sort(row.logits[np.isfinite(row.logits)])[::-1]
        falls = [
            (high - low) * float(rank) ** -self.decay for rank, (high, low) in enumerate(pairwise(ranked), 1)
        ]
        cliff = falls.index(max(falls)) if falls else 0
        return truncated(softmax(row.logits, row.temperature), row.logits >= ranked[cliff])
