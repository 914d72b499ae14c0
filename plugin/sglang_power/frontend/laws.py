"""Which law generated segments were drawn from, and what that makes of weights; pure.

A segment's law is p^exponent, or unknown. log w = alpha * log p(y) - log q(y) needs log q of everything that
a branch drew. That of plain draws is log p. That of power sampling is alpha * log p - log Z, whose Z nobody
knows: the sum of p^alpha over the answers that there are. It depends on the tokens in front and on what ends
an answer, so it cancels where every branch begins with such a draw, and these are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sglang_power.fields import TOP_K_ALL
from sglang_power.request import NO_SAMPLER
from sglang_power.rng import Key, Purpose
from sglang_power.types import FloatArray

NEUTRAL: dict[str, tuple[object, ...]] = {
    "temperature": (1.0,),
    "top_p": (1.0,),
    "top_k": (-1, TOP_K_ALL),
    "min_p": (0.0,),
    "min_new_tokens": (0,),
    "frequency_penalty": (0.0,),
    "presence_penalty": (0.0,),
    "regex": (None,),
    "json_schema": (None,),
}
"""Sampling parameters that shape tokens, and values with which draws follow the base law, or its power."""

ENDING = ("max_new_tokens", "stop", "stop_token_ids", "stop_regex", "ignore_eos")
"""Sampling parameters that say where an answer ends, and so which answers there are."""


@dataclass(frozen=True, slots=True)
class DrawnSegment:
    """A segment of a branch, as weights see it.

    Args:
        prefix: the tokens in front of it.
        log_p: of the whole segment, nats.
        exponent: as `ledger.DrawnText`.
        ends: sampling parameters of `ENDING`, as `endings_of` gives them.
    """

    prefix: tuple[int, ...]
    log_p: float
    exponent: float | None
    ends: tuple[object, ...] = ()


def exponent_of(report: Mapping[str, Any] | None, fields: Mapping[str, Any]) -> float | None:
    """The exponent of the law that an answer was drawn from; None where it is no power of p.

    Args:
        report: the answer's `meta_info.power`.
        fields: SGLang's sampling parameters of the request.
    """
    if any(fields.get(name, values[0]) not in values for name, values in NEUTRAL.items()):
        return None
    if report is None or report.get("sampler") == NO_SAMPLER:
        return 1.0
    if report.get("law") in ("power", "perfect") and "reward" not in report:
        return float(report["params"]["alpha"])
    return None


def endings_of(settings: Any) -> tuple[object, ...]:
    """What says where answers end in SGLang's sampling parameters of a request."""
    return tuple(getattr(settings, name, None) for name in ENDING)


def log_density(branch: Sequence[DrawnSegment], alpha: float) -> float | None:
    """log q of what a branch drew; None where it is unknown.

    A first draw from p^alpha leaves out log Z, which `normaliser` stands for; a later one has another Z in
    every branch, so its density is unknown.

    Args:
        branch: its segments, in order.
        alpha: exponent of the target.
    """
    total = 0.0
    for number, segment in enumerate(branch):
        if segment.exponent != 1.0 and not (number == 0 and segment.exponent == alpha):
            return None
        total += segment.log_p * segment.exponent
    return total


def normaliser(branch: Sequence[DrawnSegment], alpha: float) -> tuple[object, ...] | None:
    """What Z of a branch's first draw depends on, where that is one of p^alpha; None where Z is 1."""
    first = branch[0]
    return (first.prefix, first.ends) if first.exponent == alpha != 1.0 else None


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
