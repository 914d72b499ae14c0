"""R-hat and effective sample size of log p over several chains, by `arviz-stats`. Pure.

Rank-normalised split R-hat and bulk effective sample size (Vehtari, Gelman, Simpson, Carpenter & Buerkner,
Bayesian Analysis 2021) of the second half of each chain. They look at one number of each answer: chains may
agree in log p and be far from p^alpha. Where chains are too short for either to mean anything, there is none.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from arviz_stats.base import array_stats
from pydantic import BaseModel, ConfigDict

from sglang_power.types import FloatArray

FEWEST_DRAWS: Final = 10
"""Of a chain's second half, which R-hat splits once more."""

ENOUGH: Final = 400.0
"""Effective draws from which on R-hat is stable (the same paper, section 4)."""


class Convergence(BaseModel):
    """What the chains say of log p.

    Args:
        rhat: near 1 where the chains agree; None where it means nothing.
        ess: effective draws of all chains together; None likewise.
        draws: of each chain's second half.
        remark: why there is no number, or why not to trust it; empty where there is nothing to say.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rhat: float | None
    ess: float | None
    draws: int
    remark: str = ""


def convergence(log_p: FloatArray) -> Convergence:
    """Return both numbers.

    Args:
        log_p: [chains, draws] float64, nats, from each chain's first answer on.
    """
    half = log_p[:, log_p.shape[1] // 2 :]
    draws = half.shape[1]
    if draws < FEWEST_DRAWS:
        few = f"the second half of a chain has {draws} draws; at least {FEWEST_DRAWS} are needed"
        return Convergence(rhat=None, ess=None, draws=draws, remark=few)
    if not np.isfinite(half).all():
        return Convergence(rhat=None, ess=None, draws=draws, remark="log p of an answer is no finite number")
    if bool((half == half[:, :1]).all()):
        return Convergence(rhat=None, ess=None, draws=draws, remark="log p never changed in any chain")
    rhat = float(array_stats.rhat(half, chain_axis=0, draw_axis=1, method="rank"))
    ess = float(array_stats.ess(half, chain_axis=0, draw_axis=1, method="bulk"))
    remark = "" if ess >= ENOUGH else f"fewer than {ENOUGH:.0f} effective draws: neither number is stable"
    return Convergence(rhat=rhat, ess=ess, draws=draws, remark=remark)
