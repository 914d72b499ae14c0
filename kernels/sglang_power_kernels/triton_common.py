# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# ruff: noqa: N803
# Triton parses these functions itself: parameters are pointers and scalars whose types it infers, and any
# annotation but `constexpr` would change how they compile. Compile-time constants are in capitals by custom.
"""What the Triton kernels share: loading a tile of logits, the kept set, the partial sums of a row.

Owns device code only. Triton reads `TRITON_INTERPRET` when a kernel is defined, so these modules are
imported by `triton_backend` alone, on first use.
"""

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl


def jit(function: Callable[..., None]) -> Any:
    """`triton.jit` under a type that type checkers know, without a compilation per batch size."""
    return triton.jit(function, do_not_specialize=["batch", "tiles"])


@jit
def load_tile(row_ptr, stride, vocab, tile, BLOCK: tl.constexpr):
    """Return ids, float32 logits (-inf for padding, NaN and +inf) and the number of NaN and +inf."""
    ids = tile * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(row_ptr + ids.to(tl.int64) * stride, mask=ids < vocab, other=-float("inf")).to(tl.float32)
    bad = (x != x) | (x == float("inf"))
    return ids, tl.where(bad, -float("inf"), x), tl.sum(bad.to(tl.float32), axis=0)


@jit
def keep(x, keep_min_ptr, keep_max_ptr, row, HAS_MIN: tl.constexpr, HAS_MAX: tl.constexpr):
    """Set logits outside of the row's bounds to -inf; a NaN bound cuts nothing."""
    if HAS_MIN:
        x = tl.where(x < tl.load(keep_min_ptr + row), -float("inf"), x)
    if HAS_MAX:
        x = tl.where(x > tl.load(keep_max_ptr + row), -float("inf"), x)
    return x


@jit
def finite_or_zero(x):
    """0 for -inf: a harmless origin for a tile that holds nothing."""
    return tl.where(x == -float("inf"), 0.0, x)


@jit
def load_partial(partial_ptr, row, tiles, field, other, TILES: tl.constexpr, PARTIALS: tl.constexpr):
    """One field of all tiles of a row, in float64."""
    tile = tl.arange(0, TILES)
    return tl.load(partial_ptr + (row * tiles + tile) * PARTIALS + field, mask=tile < tiles, other=other).to(
        tl.float64
    )


@jit
def scales(peaks, origin, kappa):
    """What turns sums of `exp(kappa (x - peak))` into sums around one origin; 0 for an empty tile."""
    return tl.where(peaks > -float("inf"), tl.exp(kappa * (finite_or_zero(peaks) - origin)), 0.0)
