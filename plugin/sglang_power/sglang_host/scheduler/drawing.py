"""Draws one token per power row and takes its statistics: the arithmetic of the sampler, without SGLang.

The order of one row: temperature -> policy -> top-k, top-p, min-p (jointly, on what the policy left) ->
draw. A row of top_k = 1 takes the most likely token that its policy left, without a search and without a
draw. Draws are a function of (seed, position), so the extra calls on prefill chunks, overshoot steps and
after retraction change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sglang_power_kernels import (
    RowStatistics,
    counter_uniforms,
    row_statistics,
    sample_rows,
    truncation_bounds,
)

from sglang_power.policies import Context, Shaped, shape_rows
from sglang_power.sglang_host.child_params import APART
from sglang_power.sglang_host.scheduler.row_tensors import Pairs, RowTensors


@dataclass(frozen=True)
class Drawn:
    """One step of the power rows.

    Args:
        ids: [rows] int64, within the vocabulary even where the logits are not numbers.
        statistics: [rows, len(ROW_FIELDS)] float32, nats; log_p and log_q are NaN where the logits, or a law
            made of them, are not numbers; log_q is APART where a paired row is without its partner.
        memory: [rows, 1] int64 to remember; None where no policy remembers.
    """

    ids: torch.Tensor
    statistics: torch.Tensor
    memory: torch.Tensor | None = None


def draw_rows(
    logits: torch.Tensor,
    positions: torch.Tensor,
    rows: RowTensors,
    *,
    ends_line: torch.Tensor | None = None,
    memory: torch.Tensor | None = None,
    backend: str = "auto",
) -> Drawn:
    """Draw (or force) one token per row and take the statistics of its row.

    Args:
        logits: [rows, vocab] base-law logits; not modified.
        positions: [rows] int64, absolute position of the row.
        rows: parameters, [rows] each.
        ends_line, memory: [rows, 1], where a policy needs them; see `policies.Rows`.
        backend: of the draw; see `sglang_power_kernels.sample_rows`.
    """
    index = (positions - rows.origins)[:, None]
    given = _given(rows, index)
    apart = None if rows.pairs is None else _apart(rows.pairs, index.squeeze(1), given)
    allowed = _allowed(logits, rows)
    shaped = _shaped(allowed, rows, index, apart, ends_line, memory)
    keep_min = _keep_min(shaped, rows)
    drawn = sample_rows(
        shaped.logits,
        kappa=shaped.kappa,
        uniforms=counter_uniforms(rows.seeds, positions),
        keep_min=keep_min,
        greedy=rows.greedy,
        backend=backend,
        validate=False,
    ).clamp_min(0)
    ids = _or_policy_token(drawn, allowed, shaped)
    if rows.pairs is not None:
        ids = torch.where(rows.pairs.twin, ids[rows.pairs.partner], ids)
    if given is not None:
        ids = torch.where(given >= 0, given, ids)
    statistics = _statistics(logits, shaped, keep_min, ids, rows.greedy, apart)
    remembered = None
    if shaped.memory is not None and memory is not None:
        remembered = torch.where(index >= 0, shaped.memory, memory)
    return Drawn(ids, statistics, remembered)


def _given(rows: RowTensors, index: torch.Tensor) -> torch.Tensor | None:
    """[rows] int64, the token that a row has to emit, -1 where it is drawn; None where no row forces."""
    if rows.forced is None:
        return None
    return rows.forced.gather(1, index.clamp(0, rows.forced.shape[1] - 1)).squeeze(1)


def _apart(pairs: Pairs, index: torch.Tensor, given: torch.Tensor | None) -> torch.Tensor:
    """[rows] bool: the partner is missing from this batch or at another token, and the row needs it."""
    alone = pairs.partner == torch.arange(len(index), device=index.device)
    apart = pairs.member & (alone | (index != index[pairs.partner]))
    return apart if given is None else apart & (given < 0)


def _allowed(logits: torch.Tensor, rows: RowTensors) -> torch.Tensor:
    """[rows, vocab] the logits, -inf for banned tokens: they do not count for a policy, and are not drawn.

    A ban by logit_bias leaves a finite logit far below all others, which would make the spread of a row, or
    its steepest fall. A row that bans everything it has stays as it is.
    """
    if rows.bans is None:
        return logits
    masked = logits.index_put((rows.bans.rows, rows.bans.tokens), logits.new_tensor(-torch.inf))
    empty = masked.amax(dim=-1, keepdim=True) == -torch.inf
    return torch.where(empty, logits, masked)


def _shaped(
    logits: torch.Tensor,
    rows: RowTensors,
    index: torch.Tensor,
    apart: torch.Tensor | None,
    ends_line: torch.Tensor | None,
    memory: torch.Tensor | None,
) -> Shaped:
    if not rows.groups:
        return Shaped(logits, rows.kappa)
    twin = None
    if rows.pairs is not None and apart is not None:
        twin = logits.index_select(0, rows.pairs.partner).masked_fill_(apart[:, None], torch.nan)
    shaped = shape_rows(logits, rows.kappa, rows.groups, Context(index, ends_line, memory, twin))
    if apart is None:
        return shaped
    # A main row without its twin has no temperature; its draw is thrown away.
    kappa = torch.where(apart, rows.kappa, shaped.kappa)
    return Shaped(shaped.logits, kappa, shaped.forced, shaped.memory)


def _keep_min(shaped: Shaped, rows: RowTensors) -> torch.Tensor | None:
    """[rows] lower bounds of the kept logits; each row is searched for the limits that it names."""
    if not rows.truncation:
        return None
    bounds = shaped.kappa.new_full(shaped.kappa.shape, -torch.inf)
    for group in rows.truncation:
        whole = len(group.rows) == len(bounds)
        found = truncation_bounds(
            shaped.logits if whole else shaped.logits.index_select(0, group.rows),
            kappa=shaped.kappa.index_select(0, group.rows),
            top_k=group.top_k,
            top_p=group.top_p,
            min_p=group.min_p,
            validate=False,
        )
        bounds.index_copy_(0, group.rows, found)
    return bounds


def _or_policy_token(drawn: torch.Tensor, logits: torch.Tensor, shaped: Shaped) -> torch.Tensor:
    """The draws, or the tokens that a policy emits instead where the row allows them (a grammar may not)."""
    if shaped.forced is None:
        return drawn
    wanted = shaped.forced.clamp_min(0)
    allowed = logits.gather(1, wanted[:, None]).squeeze(1) > -torch.inf
    return torch.where((shaped.forced >= 0) & allowed, wanted, drawn)


def _statistics(
    logits: torch.Tensor,
    shaped: Shaped,
    keep_min: torch.Tensor | None,
    ids: torch.Tensor,
    greedy: torch.Tensor | None,
    apart: torch.Tensor | None,
) -> torch.Tensor:
    whole = shaped.logits is logits
    base = row_statistics(
        logits, ids, kappa=shaped.kappa, keep_min=keep_min if whole else None, validate=False
    )
    law = base
    if not whole:
        law = row_statistics(shaped.logits, ids, kappa=shaped.kappa, keep_min=keep_min, validate=False)
    log_q = law.log_q
    if greedy is not None:
        log_q = log_q.index_copy(0, greedy, _greedy_log_q(law, ids).index_select(0, greedy))
    if apart is not None:
        log_q = log_q.masked_fill(apart, APART)
    rival = torch.where(ids == base.top2_ids[:, 0], base.top2_probs[:, 1], base.top2_probs[:, 0])
    margin = base.log_p.exp() - rival
    columns = [base.log_p, log_q, base.log_z, base.entropy, base.varentropy, base.gap, margin]
    return torch.stack(columns, dim=1)


def _greedy_log_q(law: RowStatistics, ids: torch.Tensor) -> torch.Tensor:
    """[rows] log probability of the token under a law that has one token, the first of the most likely."""
    impossible = torch.full_like(law.log_q, -torch.inf)
    return impossible.masked_fill(ids == law.top2_ids[:, 0], 0.0).masked_fill(law.log_q.isnan(), torch.nan)
