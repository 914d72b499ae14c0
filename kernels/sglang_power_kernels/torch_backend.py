"""Fast torch form of the row functions: the CPU path, and a valid form for CUDA where Triton is missing.

Owns the sweeps over blocks of rows (`torch_blocks`) and what is made of their sums; reads the logits from
memory about once.

Numbers: sums in float32 around the row's maximum, second moments around their mean in a sweep of their own
(no cancellation), per-row results combined in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from . import reference
from .checks import NO_TOKEN
from .records import RowStatistics
from .torch_blocks import (
    Block,
    blocks,
    chunk_count,
    chunk_logits,
    chunks,
    is_kept,
    keep_only,
    load_rows,
    temper,
)

SUMS: Final = ("peak", "mass", "entropy", "varentropy", "tempered", "kept_peak", "kept", "mean", "std")
"""What one sweep leaves per row: maximum; sum of exp(z), z = x - maximum; H; varentropy; sum of exp(kappa
z); maximum of the kept z; sum of exp(kappa (z - kept maximum)) over the kept set; mean and deviation of the
finite logits."""
INFINITE_SCALE: Final = -(2.0**-100)
"""Maps -inf to +inf and any ordinary z to nearly 0; clamped to 1 and summed, it counts the -inf."""


def row_statistics(
    logits: torch.Tensor,
    sampled_ids: torch.Tensor,
    *,
    kappa: torch.Tensor,
    keep_min: torch.Tensor | None,
    keep_max: torch.Tensor | None,
) -> RowStatistics:
    """Return the statistics of each row of logits and of its token, in sweeps over blocks of rows."""
    batch, vocab = logits.shape
    sums = [logits.new_empty((batch,), dtype=torch.float32) for _ in SUMS]
    chunk_max = logits.new_empty((batch, chunk_count(vocab)), dtype=torch.float32)
    for block in blocks(logits):
        own = [total[block.rows] for total in sums]
        _sweep(block, kappa[block.rows], keep_min, keep_max, own, chunk_max[block.rows])
    return _combine(logits, sampled_ids, kappa, keep_min, keep_max, sums, chunk_max)


def sample_rows(
    logits: torch.Tensor,
    *,
    kappa: torch.Tensor,
    uniforms: torch.Tensor,
    keep_min: torch.Tensor | None,
    keep_max: torch.Tensor | None,
) -> torch.Tensor:
    """Draw one token per row by the inverse CDF, by chunks and then inside one."""
    batch, vocab = logits.shape
    chunk_mass = logits.new_empty((batch, chunk_count(vocab)), dtype=torch.float32)
    peak = logits.new_empty((batch,), dtype=torch.float32)
    for block in blocks(logits):
        peak[block.rows] = _shift_kept_rows(block, keep_min, keep_max, chunk_mass[block.rows])
        temper(block.shifted, kappa[block.rows], block.weights)
        torch.sum(chunks(block.weights), dim=-1, out=chunk_mass[block.rows])
    mass = chunk_mass.double().cumsum(dim=-1)
    target = uniforms.double() * mass[:, -1]
    chunk = reference.first_above(mass, chunk_mass > 0, target)[:, None]
    safe = chunk.clamp_min(0)
    below = torch.where(chunk > 0, mass.gather(1, (safe - 1).clamp_min(0)), 0.0).squeeze(1)
    ids, x = chunk_logits(logits, safe)
    low, high = (None if bound is None else bound[:, None] for bound in (keep_min, keep_max))
    weight = (kappa.double()[:, None] * (x - peak[:, None]).double()).exp()
    weight = weight.masked_fill(~is_kept(x, low, high), 0.0)
    inside = reference.first_above(weight.cumsum(dim=-1), weight > 0, target - below)
    picked = ids.gather(1, inside.clamp_min(0)[:, None]).squeeze(1)
    return picked.masked_fill((chunk.squeeze(1) < 0) | (inside < 0), NO_TOKEN)


def _shift_kept_rows(
    block: Block, keep_min: torch.Tensor | None, keep_max: torch.Tensor | None, chunk_max: torch.Tensor
) -> torch.Tensor:
    """Shift the rows by the maximum of their kept set and return it; NaN where there is nothing to draw."""
    peak = load_rows(block, chunk_max)
    if keep_min is not None or keep_max is not None:
        kept_peak = keep_only(block, block.shifted, block.scratch, keep_min, keep_max)
        peak = torch.where(torch.isfinite(peak), kept_peak, torch.nan)
    block.shifted.sub_(peak[:, None])
    return peak


def _sweep(
    block: Block,
    kappa: torch.Tensor,
    keep_min: torch.Tensor | None,
    keep_max: torch.Tensor | None,
    sums: Sequence[torch.Tensor],
    chunk_max: torch.Tensor,
) -> None:
    """Write the sums named by `SUMS` and the chunk maxima of one block of rows."""
    peak, mass, entropy, varentropy, tempered, kept_peak, kept, mean, std = sums
    peak.copy_(load_rows(block, chunk_max))
    block.shifted.sub_(peak[:, None])
    temper(block.shifted, kappa, block.weights)
    torch.sum(block.weights, dim=-1, out=tempered)
    if keep_min is None and keep_max is None:
        kept_peak.zero_()
        kept.copy_(tempered)
    else:
        _kept_mass(block, kappa, keep_min, keep_max, kept_peak, kept)
    _logit_moments(block, mean, std)
    mean.add_(peak)
    _surprise_moments(block, mass, entropy, varentropy)


def _kept_mass(
    block: Block,
    kappa: torch.Tensor,
    keep_min: torch.Tensor | None,
    keep_max: torch.Tensor | None,
    kept_peak: torch.Tensor,
    kept: torch.Tensor,
) -> None:
    """Tempered mass of the kept set, around its own maximum, which `keep_max` may put far below the row's."""
    block.scratch.copy_(block.shifted)
    kept_peak.copy_(keep_only(block, block.scratch, block.weights, keep_min, keep_max))
    temper(block.scratch.sub_(kept_peak[:, None]), kappa, block.weights)
    torch.sum(block.weights, dim=-1, out=kept)


def _logit_moments(block: Block, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Mean (of the shifted logits) and standard deviation over the finite ones."""
    scratch = block.scratch
    torch.mul(block.shifted, INFINITE_SCALE, out=scratch)
    count = scratch.shape[1] - scratch.clamp_max_(1.0).sum(dim=-1).round()
    torch.nan_to_num(block.shifted, nan=torch.nan, neginf=0.0, out=scratch)
    torch.sum(scratch, dim=-1, out=mean)
    mean.div_(count)
    torch.sub(block.shifted, mean[:, None], out=scratch)
    torch.nan_to_num(scratch, nan=torch.nan, neginf=0.0, out=scratch)
    torch.linalg.vecdot(scratch, scratch, out=std)
    std.div_(count).sqrt_()


def _surprise_moments(
    block: Block, mass: torch.Tensor, entropy: torch.Tensor, varentropy: torch.Tensor
) -> None:
    """Mass at kappa = 1, entropy and varentropy; overwrites the shifted logits."""
    z, weights = block.shifted, block.weights
    temper(z, torch.ones_like(mass), weights)
    torch.sum(weights, dim=-1, out=mass)
    torch.nan_to_num(z, nan=torch.nan, neginf=0.0, out=z)
    average = torch.linalg.vecdot(z, weights).div_(mass)
    torch.sub(torch.log(mass), average, out=entropy)
    z.sub_(average[:, None])
    weights.mul_(z)
    torch.linalg.vecdot(weights, z, out=varentropy)
    varentropy.div_(mass)


def _combine(
    logits: torch.Tensor,
    sampled_ids: torch.Tensor,
    kappa: torch.Tensor,
    keep_min: torch.Tensor | None,
    keep_max: torch.Tensor | None,
    sums: Sequence[torch.Tensor],
    chunk_max: torch.Tensor,
) -> RowStatistics:
    """Turn the sums into statistics, in float64 where large terms cancel."""
    peak, mass, entropy, varentropy, tempered, kept_peak, kept, mean, std = sums
    broken = torch.isnan(entropy)
    log_mass, k = mass.double().log(), kappa.double()
    x = reference.take(logits, sampled_ids, broken).float()
    above = x.double() - peak.double()
    log_q = k * (above - kept_peak.double()) - kept.double().log()
    log_q = log_q.masked_fill(~is_kept(x, keep_min, keep_max), -torch.inf).masked_fill(
        torch.isnan(x), torch.nan
    )
    top2_ids, top2_logits = _top_two(logits, chunk_max, broken)
    top2_log_p = (top2_logits - peak[:, None]).double() - log_mass[:, None]
    return RowStatistics(
        log_p=(above - log_mass).float(),
        log_q=log_q.float(),
        log_z=(tempered.double().log() - k * log_mass).float(),
        entropy=entropy,
        varentropy=varentropy,
        logit_mean=mean,
        logit_std=std,
        top2_ids=top2_ids,
        top2_probs=top2_log_p.exp().masked_fill(broken[:, None], torch.nan).float(),
    )


def _top_two(
    logits: torch.Tensor, chunk_max: torch.Tensor, broken: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`[batch, 2]` ids and logits of the two largest, ties to the lower id, by way of the chunk maxima."""
    first_chunk = chunk_max.argmax(dim=-1, keepdim=True)
    ids, x = chunk_logits(logits, first_chunk)
    inside = x.argmax(dim=-1, keepdim=True)
    first_id, first = ids.gather(1, inside), x.gather(1, inside)
    rest = x.scatter(1, inside, -torch.inf).amax(dim=-1, keepdim=True)
    second_chunk = chunk_max.scatter(1, first_chunk, rest).argmax(dim=-1, keepdim=True)
    ids, x = chunk_logits(logits, second_chunk)
    x = x.masked_fill(ids == first_id, -torch.inf)
    inside = x.argmax(dim=-1, keepdim=True)
    top_ids = torch.cat([first_id, ids.gather(1, inside)], dim=-1)
    top_logits = torch.cat([first, x.gather(1, inside)], dim=-1)
    return top_ids.masked_fill(torch.isneginf(top_logits) | broken[:, None], NO_TOKEN), top_logits
