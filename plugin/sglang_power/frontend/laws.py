"""Which law generated segments were drawn from, and what that makes of weights; pure.

A segment's law is p^exponent, or unknown. log w = alpha * log p(y) - log q(y) needs log q of everything that
a branch drew. That of plain draws is log p. That of power sampling is alpha * log p - log Z, whose Z nobody
knows; but Z depends only on what stands in front, so it cancels where every branch begins with such a draw
behind the same tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sglang_power.request import NO_SAMPLER
from sglang_power.rng import Key, Purpose
from sglang_power.types import FloatArray

NEUTRAL: dict[str, tuple[object, ...]] = {
    "temperature": (1.0,),
    "top_p": (1.0,),
    "top_k": (-1, 1 << 30),
    "min_p": (0.0,),
    "min_new_tokens": (0,),
    "frequency_penalty": (0.0,),
    "presence_penalty": (0.0,),
    "regex": (None,),
    "json_schema": (None,),
}
"""Sampling parameters, and values with which draws follow the base law."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A segment of a branch, as weights see it.

    Args:
        prefix: the tokens in front of it.
        log_p: of the whole segment, nats.
        exponent: as `ledger.Draw`.
    """

    prefix: tuple[int, ...]
    log_p: float
    exponent: float | None


def exponent_of(report: Mapping[str, Any] | None, fields: Mapping[str, Any]) -> float | None:
    """The exponent of the law that an answer was drawn from; None where it is no power of p.

    Args:
        report: the answer's `meta_info.power`.
        fields: SGLang's sampling parameters of the request.
    """
    if report is None or report.get("sampler") == NO_SAMPLER:
        return 1.0 if all(fields.get(name) in values for name, values in NEUTRAL.items()) else None
    if report.get("sampler") == "power" and report.get("law") == "power" and "reward" not in report:
        return float(report["params"]["alpha"])
    return None


def log_density(branch: Sequence[Drawn], alpha: float, first_prefix: tuple[int, ...]) -> float | None:
    """log q of what a branch drew, up to a constant that all branches share; None where it is unknown.

    Args:
        branch: its segments, in order.
        alpha: exponent of the target.
        first_prefix: the tokens in front of every branch's first segment; a power draw counts there only.
    """
    total = 0.0
    for number, one in enumerate(branch):
        first = number == 0 and one.prefix == first_prefix
        if one.exponent != 1.0 and not (first and one.exponent == alpha):
            return None
        total += one.log_p * one.exponent
    return total


def begins_with_power(branch: Sequence[Drawn], alpha: float) -> bool:
    """Whether a branch's first draw is one of p^alpha, whose normaliser is unknown."""
    return bool(branch) and branch[0].exponent == alpha != 1.0


def draw(log_weights: FloatArray, seed: int, purpose: Purpose) -> int:
    """An index, with probability proportional to exp(log_weights): the first of an exponential race.

    The key takes the weights in, so that one seed draws independently wherever weights differ.

    Args:
        log_weights: [n] float64, nats, -inf allowed.
        seed: of the caller.
        purpose: of the draw.
    """
    digest = hashlib.sha256(np.ascontiguousarray(log_weights).tobytes()).digest()
    key = Key(seed, int.from_bytes(digest[:7], "little"))
    arrivals = np.log(key.exponentials(0, purpose, len(log_weights))) - log_weights
    return int(np.argmin(arrivals))
