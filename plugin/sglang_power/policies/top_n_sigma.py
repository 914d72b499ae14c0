"""Top-n-sigma (Tang et al., arXiv 2411.07641): cut where the noise of the logits begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from sglang_power.fields import PositiveFloat
from sglang_power.policies.base import Action, Columns, Policy, Row, Rows, softmax, truncated
from sglang_power.types import FloatArray


class TopNSigma(Policy):
    """Keep `x_v >= max x - n * std(x)`, x the finite logits; the same set at any temperature.

    Args:
        n: standard deviations below the largest logit.
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"n": 0.3})

    sampler: Literal["top_n_sigma"] = "top_n_sigma"
    n: PositiveFloat = 1.0

    @classmethod
    def act(cls, rows: Rows, params: Columns) -> Action:
        """Keep `x_v >= max x - n * std(x)`."""
        x = rows.logits
        finite = x.isfinite()
        count = finite.sum(dim=-1, keepdim=True)
        mean = x.masked_fill(~finite, 0.0).sum(dim=-1, keepdim=True) / count
        variance = (x - mean).masked_fill(~finite, 0.0).square().sum(dim=-1, keepdim=True) / count
        return Action(keep=x >= x.amax(dim=-1, keepdim=True) - params["n"] * variance.sqrt())

    def law(self, row: Row) -> FloatArray:
        """Return the law on `x_v >= max x - n * std(x)`."""
        sigma = row.logits[np.isfinite(row.logits)].std()
        keep = row.logits >= row.logits.max() - self.n * float(sigma)
        return truncated(softmax(row.logits, row.temperature), keep)
