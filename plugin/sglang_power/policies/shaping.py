"""Applies the policies of a mixed batch: each to its own rows, all others left as they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sglang_power.policies.base import Action, Columns, Policy, Rows


@dataclass(frozen=True)
class PolicyGroup:
    """The rows of one batch that share a policy.

    Args:
        policy: the rule.
        rows: [group] int64, which rows of the batch.
        params: their parameters.
    """

    policy: type[Policy]
    rows: torch.Tensor
    params: Columns


@dataclass(frozen=True)
class Context:
    """What policies may look at beside the logits, [batch, 1] each ([batch, vocab] for `twin`).

    Fields as in Rows; None where no policy of the batch needs it.
    """

    index: torch.Tensor
    ends_line: torch.Tensor | None = None
    memory: torch.Tensor | None = None
    twin: torch.Tensor | None = None


@dataclass(frozen=True)
class Shaped:
    """A batch after its policies.

    Args:
        logits: [batch, vocab]; -inf outside of a policy's kept set. The same object where none truncates.
        kappa: [batch] inverse temperature.
        forced: [batch] int64, -1 where the token is drawn; None where no policy forces.
        memory: [batch, 1] int64; None where no policy remembers.
    """

    logits: torch.Tensor
    kappa: torch.Tensor
    forced: torch.Tensor | None = None
    memory: torch.Tensor | None = None


def shape_rows(
    logits: torch.Tensor, kappa: torch.Tensor, groups: tuple[PolicyGroup, ...], context: Context
) -> Shaped:
    """Apply every group's policy to its rows.

    Args:
        logits: [batch, vocab] floating, base-law logits; not modified.
        kappa: [batch] inverse temperatures of the requests.
        groups: disjoint groups of rows.
        context: what the policies need.
    """
    shaped = Shaped(logits, kappa)
    for group in groups:
        action = group.policy.act(_rows_of(logits, kappa, group, context), group.params)
        shaped = _with(shaped, group, action, logits, context)
    return shaped


def _rows_of(logits: torch.Tensor, kappa: torch.Tensor, group: PolicyGroup, context: Context) -> Rows:
    def own(values: torch.Tensor | None, field: str) -> torch.Tensor | None:
        return values.index_select(0, group.rows) if values is not None and field in needs else None

    needs = group.policy.needs
    return Rows(
        logits=logits.index_select(0, group.rows),
        kappa=kappa.index_select(0, group.rows)[:, None],
        index=context.index.index_select(0, group.rows),
        ends_line=own(context.ends_line, "ends_line"),
        memory=own(context.memory, "memory"),
        twin=own(context.twin, "twin"),
    )


def _with(
    shaped: Shaped, group: PolicyGroup, action: Action, original: torch.Tensor, context: Context
) -> Shaped:
    logits, kappa, forced, memory = shaped.logits, shaped.kappa, shaped.forced, shaped.memory
    if action.keep is not None:
        kept = original.index_select(0, group.rows).masked_fill_(~action.keep, -torch.inf)
        logits = (original.clone() if logits is original else logits).index_copy_(0, group.rows, kept)
    if action.kappa is not None:
        kappa = kappa.index_copy(0, group.rows, action.kappa.squeeze(1).to(kappa.dtype))
    if action.forced is not None:
        base = kappa.new_full(kappa.shape, -1, dtype=torch.int64) if forced is None else forced
        forced = base.index_copy(0, group.rows, action.forced.squeeze(1))
    if action.memory is not None and context.memory is not None:
        base = context.memory if memory is None else memory
        memory = base.index_copy(0, group.rows, action.memory)
    return Shaped(logits, kappa, forced, memory)
