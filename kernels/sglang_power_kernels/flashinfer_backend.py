"""Sampling and truncation through FlashInfer on CUDA, with the same law as the other backends.

Owns the way from logits and bounds to FlashInfer's calls (0.7.2). FlashInfer's own rejection samplers are
not used: they leave the law of what they drew unknown. Its samplers draw their own Philox noise, so the
caller's uniforms become per-row seeds, `int64(uniform * 2^53)`; the row index is the Philox subsequence, so
a draw repeats only in the same batch slot. The Gumbel noise has 2^-23 resolution: total variation to the
exact law about 1e-6.

Not run on CUDA in this repository: the tests replace FlashInfer's functions by torch ones and pin their
signatures.
"""

from __future__ import annotations

import torch

from .checks import NO_TOKEN
from .reference import min_p_bound, poison_infinite, widen
from .torch_blocks import is_kept


def sample_rows(
    logits: torch.Tensor,
    *,
    kappa: torch.Tensor,
    uniforms: torch.Tensor,
    keep_min: torch.Tensor | None,
    keep_max: torch.Tensor | None,
) -> torch.Tensor:
    """Draw one token per row: scale, mask, `flashinfer.sampling.sampling_from_logits`."""
    from flashinfer.sampling import sampling_from_logits

    x = poison_infinite(widen(logits))
    low, high = (None if bound is None else bound[:, None] for bound in (keep_min, keep_max))
    kept = x.masked_fill(~(is_kept(x, low, high) | torch.isnan(x)), -torch.inf)
    peak = kept.amax(dim=-1, keepdim=True)
    lawless = ~torch.isfinite(peak)
    scaled = ((kept - peak) * kappa[:, None]).masked_fill(lawless, 0.0)
    seeds = (uniforms.double() * 2.0**53).long()
    offsets = torch.zeros_like(seeds)
    ids: torch.Tensor = sampling_from_logits(scaled, deterministic=True, seed=seeds, offset=offsets)
    return ids.long().masked_fill(lawless.squeeze(1), NO_TOKEN)


def truncation_bounds(
    logits: torch.Tensor,
    *,
    kappa: torch.Tensor,
    top_k: torch.Tensor | None,
    top_p: torch.Tensor | None,
    min_p: torch.Tensor | None,
) -> torch.Tensor:
    """Return each row's bound of the kept set, by FlashInfer's top-k mask and top-p renormalisation."""
    from flashinfer.sampling import top_k_mask_logits, top_p_renorm_probs

    x = poison_infinite(widen(logits))
    peak = x.amax(dim=-1)
    lawless = ~torch.isfinite(peak)
    x = x.masked_fill(lawless[:, None], 0.0).contiguous()
    bound = torch.full_like(peak, -torch.inf)
    if min_p is not None:
        bound = torch.maximum(bound, min_p_bound(x, kappa, min_p))
    if top_k is not None:
        off = (top_k <= 0) | (top_k >= x.shape[1])
        kept = top_k_mask_logits(x, top_k.clamp(1, max(x.shape[1] - 1, 1)).int())
        bound = torch.maximum(bound, _smallest(x, kept > -torch.inf).masked_fill(off, -torch.inf))
    if top_p is not None:
        law = ((x - x.amax(dim=-1, keepdim=True)) * kappa[:, None]).softmax(dim=-1)
        kept = top_p_renorm_probs(law, top_p.float().clamp(1e-6, 1.0), is_deterministic=True)
        bound = torch.maximum(bound, _smallest(x, kept > 0).masked_fill(top_p >= 1, -torch.inf))
    return bound.masked_fill(lawless, -torch.inf)


def _smallest(x: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """`[batch]` smallest kept logit."""
    return x.masked_fill(~kept, torch.inf).amin(dim=-1)
