"""The naive form of every function: the specification that the other backends are tested against.

Owns the definitions, written for reading rather than speed. Runs on any device, without host
synchronisation, in float32, or in float64 throughout when given float64 logits.
"""

from __future__ import annotations

import torch

from .checks import NO_TOKEN
from .records import RowStatistics


def row_statistics(
    logits: torch.Tensor,
    sampled_ids: torch.Tensor,
    *,
    kappa: torch.Tensor,
    keep_min: torch.Tensor | None,
    keep_max: torch.Tensor | None,
) -> RowStatistics:
    """Return the statistics of each row of logits and of its token, by their definitions."""
    x = widen(logits)
    log_p = poison_infinite(x).log_softmax(dim=-1)
    p = log_p.exp()
    entropy = -zero_where_impossible(p * log_p, p).sum(dim=-1)
    varentropy = zero_where_impossible(p * (log_p + entropy[:, None]).square(), p).sum(dim=-1)
    log_z = (kappa.to(x.dtype)[:, None] * log_p).logsumexp(dim=-1)
    log_q = kept_log_q(x, kappa, keep_min, keep_max)
    logit_mean, logit_std = finite_moments(x)
    broken = torch.isnan(entropy)
    top2_ids, top2_probs = top_two(x, log_p, broken)
    return RowStatistics(
        log_p=take(log_p, sampled_ids, broken),
        log_q=take(log_q, sampled_ids, broken),
        log_z=log_z,
        entropy=entropy,
        varentropy=varentropy,
        logit_mean=logit_mean.masked_fill(broken, torch.nan),
        logit_std=logit_std.masked_fill(broken, torch.nan),
        top2_ids=top2_ids,
        top2_probs=top2_probs,
    )


def sample_rows(
    logits: torch.Tensor,
    *,
    kappa: torch.Tensor,
    uniforms: torch.Tensor,
    keep_min: torch.Tensor | None,
    keep_max: torch.Tensor | None,
) -> torch.Tensor:
    """Draw one token per row by the inverse CDF in float64 over the whole row."""
    x = poison_infinite(widen(logits).double())
    q = kept_log_q(x, kappa, keep_min, keep_max).exp()
    mass = q.cumsum(dim=-1)
    target = uniforms.double() * mass[:, -1]
    return first_above(mass, q > 0, target)


def truncation_bounds(
    logits: torch.Tensor,
    *,
    kappa: torch.Tensor,
    top_k: torch.Tensor | None,
    top_p: torch.Tensor | None,
    min_p: torch.Tensor | None,
) -> torch.Tensor:
    """Return each row's bound of the kept set by sorting the row."""
    x = poison_infinite(widen(logits))
    ordered = x.sort(dim=-1, descending=True).values
    bound = torch.full_like(ordered[:, 0], -torch.inf)
    if min_p is not None:
        bound = torch.maximum(bound, min_p_bound(x, kappa, min_p))
    if top_k is not None:
        off = (top_k <= 0) | (top_k >= x.shape[1])
        kth = take(ordered, (top_k - 1).clamp(0, x.shape[1] - 1), off)
        bound = torch.maximum(bound, kth.masked_fill(off, -torch.inf))
    if top_p is not None:
        law = (kappa.double()[:, None] * (ordered - ordered[:, :1]).double()).softmax(dim=-1)
        needed = (law.cumsum(dim=-1) - law < top_p.double()[:, None]).sum(dim=-1).clamp_min(1)
        last = take(ordered, needed - 1, torch.zeros_like(top_p, dtype=torch.bool))
        bound = torch.maximum(bound, last.masked_fill(top_p >= 1, -torch.inf))
    lawless = torch.isnan(x).any(dim=-1) | torch.isneginf(ordered[:, 0])
    return bound.masked_fill(lawless, -torch.inf)


def min_p_bound(x: torch.Tensor, kappa: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """`q(v) >= min_p * max q` as a logit: `max + log(min_p) / kappa`; -inf where `min_p <= 0`."""
    margin = min_p.double().clamp_min(0.0).log() / kappa.double()
    return (x.amax(dim=-1).double() + margin).to(x.dtype)


def kept_log_q(
    x: torch.Tensor, kappa: torch.Tensor, keep_min: torch.Tensor | None, keep_max: torch.Tensor | None
) -> torch.Tensor:
    """`[batch, vocab]` log of the tempered law renormalised over the kept set; -inf outside of it."""
    outside = torch.isneginf(x)
    if keep_min is not None:
        outside |= x < keep_min[:, None]
    if keep_max is not None:
        outside |= x > keep_max[:, None]
    kept = x.masked_fill(outside, -torch.inf)
    peak = kept.amax(dim=-1, keepdim=True)
    tempered = kappa.to(x.dtype)[:, None] * (kept - peak.masked_fill(torch.isneginf(peak), 0.0))
    return (tempered - tempered.logsumexp(dim=-1, keepdim=True)).masked_fill(outside, -torch.inf)


def first_above(mass: torch.Tensor, possible: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """`[batch]` first possible index whose cumulated mass exceeds the target; the last possible one if
    rounding left none.

    Never an index whose own mass is 0. `NO_TOKEN` where nothing is possible or the target is NaN.
    """
    index = torch.arange(mass.shape[1], device=mass.device)
    size = mass.shape[1]
    last = torch.where(possible, index, NO_TOKEN).amax(dim=-1)
    first = torch.where(possible & (mass > target[:, None]), index, size).amin(dim=-1)
    return torch.minimum(first, last).masked_fill(torch.isnan(target), NO_TOKEN)


def widen(logits: torch.Tensor) -> torch.Tensor:
    """The logits in the dtype of the computation: float64 stays, the rest becomes float32, exactly."""
    return logits if logits.dtype == torch.float64 else logits.float()


def poison_infinite(x: torch.Tensor) -> torch.Tensor:
    """Turn +inf, which no law can hold, into NaN, so that the whole row is reported as NaN."""
    return x.masked_fill(torch.isposinf(x), torch.nan)


def zero_where_impossible(terms: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """The limit 0 of `p * f(log p)` where p is 0 and the product is `0 * inf`."""
    return terms.masked_fill(p == 0, 0.0)


def finite_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`[batch]` mean and population standard deviation of the finite logits."""
    finite = torch.isfinite(x)
    count = finite.sum(dim=-1)
    mean = x.masked_fill(~finite, 0.0).sum(dim=-1) / count
    deviation = (x - mean[:, None]).masked_fill(~finite, 0.0)
    return mean, (deviation.square().sum(dim=-1) / count).sqrt()


def top_two(x: torch.Tensor, log_p: torch.Tensor, broken: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`[batch, 2]` ids and probabilities of the two largest logits; ties go to the lower id."""
    first = x.argmax(dim=-1, keepdim=True)
    rest = x.scatter(1, first, -torch.inf)
    second = rest.argmax(dim=-1, keepdim=True)
    alone = torch.isneginf(rest.gather(1, second))
    ids = torch.cat([first, second.masked_fill(alone, NO_TOKEN)], dim=-1)
    probs = torch.cat(
        [log_p.gather(1, first).exp(), log_p.gather(1, second).exp().masked_fill(alone, 0.0)], dim=-1
    )
    lawless = broken[:, None]
    return ids.masked_fill(lawless, NO_TOKEN), probs.masked_fill(lawless, torch.nan)


def take(values: torch.Tensor, ids: torch.Tensor, broken: torch.Tensor) -> torch.Tensor:
    """`[batch]` value at each row's id; NaN in a row without a law or for an id out of range."""
    vocab = values.shape[1]
    outside = (ids < 0) | (ids >= vocab)
    safe = ids.clamp(0, vocab - 1).long()
    return values.gather(1, safe[:, None]).squeeze(1).masked_fill(outside | broken, torch.nan)
