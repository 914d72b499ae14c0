"""Row records of a tree, for triggers."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from sglang_power.engines.tabular import TabularModel
from sglang_power.types import FloatArray, ProposalLaw

rows_of_p = st.lists(st.floats(0.01, 1.0), min_size=2, max_size=6).map(lambda w: np.array(w) / sum(w))


paths_of_rows = st.lists(rows_of_p, min_size=1, max_size=30)


def record(p: FloatArray, token: int = 0) -> list[float]:
    """The ROW_FIELDS of drawing `token` from p."""
    return list(TabularModel(lambda _: p, horizon=1).row((), token, ProposalLaw(1.0)))
