# mypy: disable-error-code="no-untyped-def, no-untyped-call"
# ruff: noqa: N803
# Triton parses these functions itself: parameters are pointers and scalars whose types it infers, and any
# annotation but `constexpr` would change how they compile. Compile-time constants are in capitals by custom.
"""Triton kernels of `row_statistics`: one program per tile of a row, then one per row merges the tiles.

Owns the device code of the statistics. The logits are read once, split along the vocabulary so that a small
batch still fills the device; partial sums are taken around the tile's own maximum and merge exactly, in
float64 (second moments as in Chan, Golub and LeVeque 1983).
"""

import triton.language as tl

from .triton_common import finite_or_zero, jit, keep, load_partial, load_tile, scales

PARTIALS = 12
"""Floats per tile of `tile_statistics`, in the order of its stores."""


@jit
def tile_statistics(
    logits_ptr,
    row_stride,
    token_stride,
    vocab,
    tiles,
    kappa_ptr,
    keep_min_ptr,
    keep_max_ptr,
    partial_ptr,
    id_ptr,
    HAS_MIN: tl.constexpr,
    HAS_MAX: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTIALS: tl.constexpr,
):
    """Write the partial sums of one tile of one row, `[batch, tiles, PARTIALS]`, and its two best ids."""
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    ids, x, bad = load_tile(logits_ptr + row * row_stride, token_stride, vocab, tile, BLOCK)
    kappa = tl.load(kappa_ptr + row)
    first = tl.argmax(x, axis=0)
    peak = tl.max(x, axis=0)
    rest = tl.where(ids == tile * BLOCK + first, -float("inf"), x)
    second = tl.argmax(rest, axis=0)
    out = partial_ptr + (row * tiles + tile) * PARTIALS
    tl.store(out + 0, bad)
    tl.store(out + 1, peak)
    tl.store(out + 2, tl.max(rest, axis=0))
    tl.store(id_ptr + (row * tiles + tile) * 2, tile * BLOCK + first)
    tl.store(id_ptr + (row * tiles + tile) * 2 + 1, tile * BLOCK + second)
    finite = x > -float("inf")
    z = x - finite_or_zero(peak)
    e = tl.exp(z)
    z = tl.where(finite, z, 0.0)
    mass = tl.sum(e, axis=0)
    average = tl.sum(e * z, axis=0) / tl.maximum(mass, 1e-30)
    tl.store(out + 3, mass)
    tl.store(out + 4, average)
    tl.store(out + 5, tl.sum(e * (z - average) * (z - average), axis=0))
    tl.store(out + 6, tl.sum(tl.where(finite, tl.exp(kappa * z), 0.0), axis=0))
    count = tl.sum(finite.to(tl.float32), axis=0)
    mean = tl.sum(z, axis=0) / tl.maximum(count, 1.0)
    deviation = tl.where(finite, z - mean, 0.0)
    tl.store(out + 7, count)
    tl.store(out + 8, mean)
    tl.store(out + 9, tl.sum(deviation * deviation, axis=0))
    kept = keep(x, keep_min_ptr, keep_max_ptr, row, HAS_MIN, HAS_MAX)
    kept_peak = tl.max(kept, axis=0)
    tl.store(out + 10, kept_peak)
    tl.store(out + 11, tl.sum(tl.exp(kappa * (kept - finite_or_zero(kept_peak))), axis=0))


@jit
def merge_moments(weight, mean, square):
    """Mean and variance of the union of weighted groups with those means and sums of squares."""
    total = tl.sum(weight, axis=0)
    total = tl.where(total > 0, total, 1.0)
    merged = tl.sum(weight * mean, axis=0) / total
    off = mean - merged
    return merged, (tl.sum(square, axis=0) + tl.sum(weight * off * off, axis=0)) / total


@jit
def merge_statistics(
    logits_ptr,
    row_stride,
    token_stride,
    vocab,
    batch,
    tiles,
    sampled_ptr,
    kappa_ptr,
    keep_min_ptr,
    keep_max_ptr,
    partial_ptr,
    id_ptr,
    out_ptr,
    top2_probs_ptr,
    top2_ids_ptr,
    HAS_MIN: tl.constexpr,
    HAS_MAX: tl.constexpr,
    TILES: tl.constexpr,
    PARTIALS: tl.constexpr,
):
    """Merge the tiles of one row and write its statistics to `out[:, row]` and the top-2 tensors."""
    row = tl.program_id(0).to(tl.int64)
    kappa = tl.load(kappa_ptr + row).to(tl.float64)
    bad = tl.sum(load_partial(partial_ptr, row, tiles, 0, 0.0, TILES, PARTIALS), axis=0)
    peaks = load_partial(partial_ptr, row, tiles, 1, -float("inf"), TILES, PARTIALS)
    peak = tl.max(peaks, axis=0)
    nan = tl.where((bad > 0) | (peak == -float("inf")), float("nan"), 0.0).to(tl.float64)
    origin = finite_or_zero(peak)
    log_mass = merge_law(peaks, origin, kappa, nan, row, batch, tiles, partial_ptr, out_ptr, TILES, PARTIALS)

    peaks_kept = load_partial(partial_ptr, row, tiles, 10, -float("inf"), TILES, PARTIALS)
    origin_kept = finite_or_zero(tl.max(peaks_kept, axis=0))
    kept = load_partial(partial_ptr, row, tiles, 11, 0.0, TILES, PARTIALS)
    log_kept = tl.log(tl.sum(scales(peaks_kept, origin_kept, kappa) * kept, axis=0))
    sampled = tl.load(sampled_ptr + row).to(tl.int64)
    known = (sampled >= 0) & (sampled < vocab)
    missing = tl.where(known, nan, float("nan"))
    x = tl.load(logits_ptr + row * row_stride + tl.where(known, sampled, 0) * token_stride).to(tl.float32)
    kept_x = keep(x, keep_min_ptr, keep_max_ptr, row, HAS_MIN, HAS_MAX)
    log_q = kappa * (kept_x.to(tl.float64) - origin_kept) - log_kept
    log_q = tl.where(kept_x == -float("inf"), -float("inf"), log_q)
    tl.store(out_ptr + row, x.to(tl.float64) - origin - log_mass + missing)
    tl.store(out_ptr + batch + row, log_q + missing)

    seconds = load_partial(partial_ptr, row, tiles, 2, -float("inf"), TILES, PARTIALS)
    log_total = origin + log_mass + nan
    merge_top2(peaks, seconds, id_ptr, row, tiles, log_total, top2_probs_ptr, top2_ids_ptr, TILES)


@jit
def merge_law(
    peaks,
    origin,
    kappa,
    nan,
    row,
    batch,
    tiles,
    partial_ptr,
    out_ptr,
    TILES: tl.constexpr,
    PARTIALS: tl.constexpr,
):
    """Write what does not depend on the sampled token, `out[2:, row]`; return log mass around `origin`."""
    shift = finite_or_zero(peaks) - origin
    scale = scales(peaks, origin, 1.0)
    masses = scale * load_partial(partial_ptr, row, tiles, 3, 0.0, TILES, PARTIALS)
    averages = shift + load_partial(partial_ptr, row, tiles, 4, 0.0, TILES, PARTIALS)
    squares = scale * load_partial(partial_ptr, row, tiles, 5, 0.0, TILES, PARTIALS)
    average, varentropy = merge_moments(masses, averages, squares)
    log_mass = tl.log(tl.sum(masses, axis=0))
    tempered = scales(peaks, origin, kappa) * load_partial(partial_ptr, row, tiles, 6, 0.0, TILES, PARTIALS)
    log_z = tl.log(tl.sum(tempered, axis=0)) - kappa * log_mass

    counts = load_partial(partial_ptr, row, tiles, 7, 0.0, TILES, PARTIALS)
    means = shift + load_partial(partial_ptr, row, tiles, 8, 0.0, TILES, PARTIALS)
    deviations = load_partial(partial_ptr, row, tiles, 9, 0.0, TILES, PARTIALS)
    mean, variance = merge_moments(counts, means, deviations)
    tl.store(out_ptr + 2 * batch + row, log_z + nan)
    tl.store(out_ptr + 3 * batch + row, log_mass - average + nan)
    tl.store(out_ptr + 4 * batch + row, varentropy + nan)
    tl.store(out_ptr + 5 * batch + row, origin + mean + nan)
    tl.store(out_ptr + 6 * batch + row, tl.sqrt(variance) + nan)
    return log_mass


@jit
def merge_top2(
    peaks, seconds, id_ptr, row, tiles, log_total, top2_probs_ptr, top2_ids_ptr, TILES: tl.constexpr
):
    """The two best of the tiles' two best, ties to the lower id; -1 for none and where the total is NaN."""
    tile = tl.arange(0, TILES)
    first_ids = tl.load(id_ptr + (row * tiles + tile) * 2, mask=tile < tiles, other=0)
    second_ids = tl.load(id_ptr + (row * tiles + tile) * 2 + 1, mask=tile < tiles, other=0)
    winner = tl.argmax(peaks, axis=0)
    first = tl.max(peaks, axis=0)
    first_id = tl.sum(tl.where(tile == winner, first_ids, 0), axis=0)
    rest = tl.where(tile == winner, seconds, peaks)
    runner_up = tl.argmax(rest, axis=0)
    second = tl.max(rest, axis=0)
    rest_ids = tl.where(tile == winner, second_ids, first_ids)
    second_id = tl.sum(tl.where(tile == runner_up, rest_ids, 0), axis=0)
    lawless = log_total != log_total
    tl.store(top2_ids_ptr + row * 2, tl.where(lawless, -1, first_id).to(tl.int64))
    absent = lawless | (second == -float("inf"))
    tl.store(top2_ids_ptr + row * 2 + 1, tl.where(absent, -1, second_id).to(tl.int64))
    tl.store(top2_probs_ptr + row * 2, tl.exp(first - log_total))
    tl.store(top2_probs_ptr + row * 2 + 1, tl.exp(second - log_total))
