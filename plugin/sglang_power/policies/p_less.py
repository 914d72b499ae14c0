"""p-less sampling (arXiv 2509.23234): truncation without a parameter."""

from __future__ import annotations

from typing import Literal

from sglang_power.policies.base import Action, Columns, Policy, Row, Rows, softmax, top_tokens, truncated
from sglang_power.types import FloatArray


class PLess(Policy):
    """Keep `p >= sum p^2`, the probability that two draws agree."""

    sampler: Literal["p_less"] = "p_less"

    @classmethod
    def act(cls, rows: Rows, params: Columns) -> Action:  # noqa: ARG003  (it has none)
        """Keep `p >= sum p^2`."""
        log_p = rows.log_tempered
        # No more than max p, and equal to it in a flat row: then rounding must not empty the set.
        return Action(keep=(log_p >= (2.0 * log_p).logsumexp(dim=-1, keepdim=True)) | top_tokens(rows.logits))

    def law(self, row: Row) -> FloatArray:
        """Return the law on `p >= sum p^2`."""
        p = softmax(row.logits, row.temperature)
        return truncated(p, (p >= p @ p) | (row.logits == row.logits.max()))
