"""A policy as another package would bring it: Top-a sampling.

A distribution of one module is enough. Its `entry_points.txt` (in pyproject.toml:
`[project.entry-points."sglang_power.policies"]`) says

    [sglang_power.policies]
    top_a = top_a_policy:TopA

and requests may name it: {"sampler": "top_a", "a": 0.3}. conftest.py installs this file so beside the
server, whose tests run over it as over any other policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from sglang_power.fields import Probability
from sglang_power.policies import Action, Columns, Policy, Row, Rows
from sglang_power.types import FloatArray


class TopA(Policy):
    """Keep `p >= a * max(p)^2`, p at the request's temperature: the surer the model, the fewer tokens.

    Args:
        a: the share.
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"a": 1.0})

    sampler: Literal["top_a"] = "top_a"
    a: Probability = 0.2

    @classmethod
    def act(cls, rows: Rows, params: Columns) -> Action:
        """See the class."""
        log_p = rows.log_tempered
        return Action(keep=log_p >= params["a"].log() + 2.0 * log_p.amax(dim=-1, keepdim=True))

    def law(self, row: Row) -> FloatArray:
        """See the class."""
        weights = np.exp((row.logits - row.logits.max()) / row.temperature)
        p = weights / weights.sum()
        kept = np.where(p >= self.a * p.max() ** 2, p, 0.0)
        return np.asarray(kept / kept.sum(), dtype=np.float64)
