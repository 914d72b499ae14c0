"""Top-k, top-p and min-p as one lower bound on the logits of each row, without sorting.

Owns the radix search: logits become integers that sort like them; tokens (top-k) or mass (top-p) are summed
in buckets of the first digit, then of the next inside the chosen bucket. Mass is summed in fixed point, so
the bound does not depend on the order of additions and all ranks find the same. Knows nothing of sampling.
"""

from __future__ import annotations

from typing import Final

import torch

from .reference import min_p_bound, widen
from .torch_blocks import block_height

BUCKETS: Final = 1 << 11
DIGIT_SHIFTS: Final = (22, 11, 0)
"""Where the digits of a 32-bit key start; few buckets, so that their sums stay in the first cache."""
MASS_UNIT: Final = 2.0**52
"""Fixed-point scale: float32 probabilities above 2^-28 are exact, a row's rounding is below 1e-10."""
INT32_MAX: Final = 0x7FFFFFFF
KEY_OFFSET: Final = 1 << 31


def truncation_bounds(
    logits: torch.Tensor,
    *,
    kappa: torch.Tensor,
    top_k: torch.Tensor | None,
    top_p: torch.Tensor | None,
    min_p: torch.Tensor | None,
) -> torch.Tensor:
    """Return each row's bound of the kept set, by a radix search."""
    batch, vocab = logits.shape
    if top_k is None and top_p is None and min_p is None:
        return logits.new_full((batch,), -torch.inf, dtype=torch.float32)
    height = block_height(batch, vocab, logits.device)
    bounds = logits.new_empty((batch,), dtype=torch.float32)
    for start in range(0, batch, height):
        rows = slice(start, min(start + height, batch))
        x = widen(logits[rows])
        peak = x.amax(dim=-1)
        bound = torch.full_like(peak, -torch.inf)
        if min_p is not None:
            bound = torch.maximum(bound, min_p_bound(x, kappa[rows], min_p[rows]))
        if top_k is not None:
            bound = torch.maximum(bound, _top_k_bound(x, top_k[rows].long()))
        if top_p is not None:
            bound = torch.maximum(bound, _top_p_bound(x, kappa[rows], top_p[rows]))
        bounds[rows] = bound.masked_fill(~torch.isfinite(peak), -torch.inf)
    return bounds


def _top_k_bound(x: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    """The k-th largest logit; -inf where `k <= 0` or `k >= vocab`."""
    off = (top_k <= 0) | (top_k >= x.shape[1])
    ones = torch.ones_like(x, dtype=torch.int64)
    return _largest_bound(x, ones, top_k.clamp_min(1)).masked_fill(off, -torch.inf)


def _top_p_bound(x: torch.Tensor, kappa: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """The largest bound whose kept set has mass of at least p under the tempered law; -inf if `p >= 1`."""
    shifted = (x - x.amax(dim=-1, keepdim=True)).mul_(kappa[:, None])
    mass = shifted.softmax(dim=-1).mul_(MASS_UNIT).long()
    needed = (mass.sum(dim=-1).double() * top_p.double().clamp(0.0, 1.0)).ceil().long().clamp_min(1)
    return _largest_bound(x, mass, needed).masked_fill(top_p >= 1, -torch.inf)


def _largest_bound(x: torch.Tensor, weights: torch.Tensor, needed: torch.Tensor) -> torch.Tensor:
    """`[batch]` largest logit t with `sum of weights over {x >= t} >= needed`; -inf where the row holds less.

    Overwrites `weights`.
    """
    key = _sortable(x)
    digit, inside = torch.empty_like(key), torch.empty_like(key)
    short = weights.sum(dim=-1) < needed
    found = torch.zeros_like(needed)
    for shift in DIGIT_SHIFTS:
        torch.bitwise_right_shift(key, shift, out=digit).bitwise_and_(BUCKETS - 1)
        bucket, needed = _largest_bucket(digit, weights, needed)
        weights.mul_(torch.eq(digit, bucket[:, None], out=inside))
        found = found + (bucket << shift)
    return _unsortable(found).masked_fill(short, -torch.inf)


def _largest_bucket(
    digit: torch.Tensor, weights: torch.Tensor, needed: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`[batch]` largest digit that, with all above it, holds `needed`; and what those above leave missing."""
    totals = weights.new_zeros((weights.shape[0], BUCKETS)).scatter_add_(1, digit, weights)
    from_top = totals.flip(1).cumsum(dim=-1)
    steps = (from_top < needed[:, None]).sum(dim=-1).clamp_max(BUCKETS - 1)
    bucket = BUCKETS - 1 - steps
    above = from_top.gather(1, steps[:, None]) - totals.gather(1, bucket[:, None])
    return bucket, needed - above.squeeze(1)


def _sortable(x: torch.Tensor) -> torch.Tensor:
    """Int64 keys in `[0, 2^32)` that sort like the float32 values; both zeros get one key."""
    bits = (x + 0.0).view(torch.int32)
    flips = (bits >> 31).bitwise_and_(INT32_MAX)
    return bits.bitwise_xor_(flips).long().add_(KEY_OFFSET)


def _unsortable(key: torch.Tensor) -> torch.Tensor:
    """The float32 values of sortable keys."""
    bits = (key - KEY_OFFSET).int()
    return (bits ^ ((bits >> 31) & INT32_MAX)).view(torch.float32)
