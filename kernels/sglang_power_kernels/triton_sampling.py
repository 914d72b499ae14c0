# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# ruff: noqa: N803
# Triton parses these functions itself: parameters are pointers and scalars whose types it infers, and any
# annotation but `constexpr` would change how they compile. Compile-time constants are in capitals by custom.
"""Triton kernels of `sample_rows`: the mass of every tile, then one program per row inverts the CDF.

Owns the device code of sampling. The logits are read once, and one tile of each row again.
"""

import triton.language as tl

from .triton_common import finite_or_zero, jit, keep, load_partial, load_tile, scales

PARTIALS = 3
"""Floats per tile of `tile_mass`, in the order of its stores."""


@jit
def tile_mass(
    logits_ptr,
    row_stride,
    token_stride,
    vocab,
    tiles,
    kappa_ptr,
    keep_min_ptr,
    keep_max_ptr,
    partial_ptr,
    HAS_MIN: tl.constexpr,
    HAS_MAX: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTIALS: tl.constexpr,
):
    """Write one tile's `(bad, maximum, sum of exp(kappa (x - maximum)))` over its kept set."""
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    _, x, bad = load_tile(logits_ptr + row * row_stride, token_stride, vocab, tile, BLOCK)
    x = keep(x, keep_min_ptr, keep_max_ptr, row, HAS_MIN, HAS_MAX)
    peak = tl.max(x, axis=0)
    mass = tl.sum(tl.exp(tl.load(kappa_ptr + row) * (x - finite_or_zero(peak))), axis=0)
    out = partial_ptr + (row * tiles + tile) * PARTIALS
    tl.store(out, bad)
    tl.store(out + 1, peak)
    tl.store(out + 2, mass)


@jit
def first_above(mass, target, SIZE: tl.constexpr):
    """First index of positive mass whose cumulated mass exceeds the target, else the last one, else -1."""
    index = tl.arange(0, SIZE)
    cumulated = tl.cumsum(mass, axis=0)
    possible = mass > 0
    last = tl.max(tl.where(possible, index, -1), axis=0)
    first = tl.min(tl.where(possible & (cumulated > target), index, SIZE), axis=0)
    return tl.minimum(first, last)


@jit
def pick_token(
    logits_ptr,
    row_stride,
    token_stride,
    vocab,
    tiles,
    kappa_ptr,
    uniform_ptr,
    keep_min_ptr,
    keep_max_ptr,
    partial_ptr,
    id_ptr,
    HAS_MIN: tl.constexpr,
    HAS_MAX: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
    PARTIALS: tl.constexpr,
):
    """Invert the CDF of one row: the tile first, then the token inside it."""
    row = tl.program_id(0).to(tl.int64)
    kappa = tl.load(kappa_ptr + row).to(tl.float64)
    bad = tl.sum(load_partial(partial_ptr, row, tiles, 0, 0.0, TILES, PARTIALS), axis=0)
    peaks = load_partial(partial_ptr, row, tiles, 1, -float("inf"), TILES, PARTIALS)
    origin = finite_or_zero(tl.max(peaks, axis=0))
    mass = scales(peaks, origin, kappa) * load_partial(partial_ptr, row, tiles, 2, 0.0, TILES, PARTIALS)
    target = tl.load(uniform_ptr + row).to(tl.float64) * tl.sum(mass, axis=0)
    tile = first_above(mass, target, TILES)
    below = tl.sum(tl.where(tl.arange(0, TILES) < tile, mass, 0.0), axis=0)
    _, x, _ = load_tile(logits_ptr + row * row_stride, token_stride, vocab, tl.maximum(tile, 0), BLOCK)
    x = keep(x, keep_min_ptr, keep_max_ptr, row, HAS_MIN, HAS_MAX)
    weight = tl.exp(kappa * (x.to(tl.float64) - origin))
    inside = first_above(weight, target - below, BLOCK)
    found = (bad == 0) & (tile >= 0) & (inside >= 0)
    tl.store(id_ptr + row, tl.where(found, tile * BLOCK + inside, -1).to(tl.int64))
