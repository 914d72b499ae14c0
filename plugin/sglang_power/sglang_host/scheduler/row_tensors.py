"""The parameters of a batch's power rows as tensors, built once per composition of the batch.

Built on the host, moved to the device through pinned memory so that the host does not wait. Scheduler
process; knows nothing of requests.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sglang_power.policies import Policy, PolicyGroup
from sglang_power.sglang_host.child_params import ChildParams
from sglang_power.types import ProposalLaw


@dataclass(frozen=True)
class Truncation:
    """Per-row truncation, [active] each; values that keep everything mean off."""

    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor


@dataclass(frozen=True)
class Pairs:
    """Which rows decode one answer in lock step, [active] each.

    Args:
        partner: int64, the other row of the pair; the row itself where it is not in this batch.
        twin: bool, the row repeats its partner's tokens.
        member: bool, the row belongs to a pair.
    """

    partner: torch.Tensor
    twin: torch.Tensor
    member: torch.Tensor


@dataclass(frozen=True)
class RowTensors:
    """Parameters of the active rows, [active] each unless said otherwise.

    Args:
        indices, others: int64, batch positions of the active rows and ([batch - active]) of all others.
        kappa: float32.  seeds: int64.
        truncation: None where no row truncates.
        forced: int64 [active, longest + 1], -1 where the token is drawn, as after the last forced one; None
            where no row forces.
        origins: int64, position of the row that the first new token is drawn from.
        groups: the rows of each policy.
        pairs: None where no row is paired.
    """

    indices: torch.Tensor
    others: torch.Tensor
    kappa: torch.Tensor
    seeds: torch.Tensor
    truncation: Truncation | None
    forced: torch.Tensor | None
    origins: torch.Tensor
    groups: tuple[PolicyGroup, ...] = ()
    pairs: Pairs | None = None

    @classmethod
    def of(cls, active: Sequence[ChildParams], indices: Sequence[int], batch: int) -> RowTensors:
        """The tensors of a batch's active rows, on the host."""
        laws = [row.law for row in active]
        others = sorted(set(range(batch)) - set(indices))
        return cls(
            indices=torch.tensor(indices, dtype=torch.int64),
            others=torch.tensor(others, dtype=torch.int64),
            kappa=torch.tensor([law.kappa for law in laws], dtype=torch.float32),
            seeds=torch.tensor([row.seed for row in active], dtype=torch.int64),
            truncation=_truncation(laws),
            forced=_forced(active),
            origins=torch.tensor([row.origin for row in active], dtype=torch.int64),
            groups=_groups([row.policy for row in active]),
            pairs=_pairs(active),
        )

    def to(self, device: torch.device) -> RowTensors:
        """The same on a device."""
        if device.type == "cpu":
            return self

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.pin_memory().to(device, non_blocking=True)

        limits, pairs = self.truncation, self.pairs
        return RowTensors(
            indices=move(self.indices),
            others=move(self.others),
            kappa=move(self.kappa),
            seeds=move(self.seeds),
            truncation=None
            if limits is None
            else Truncation(move(limits.top_k), move(limits.top_p), move(limits.min_p)),
            forced=None if self.forced is None else move(self.forced),
            origins=move(self.origins),
            groups=tuple(
                PolicyGroup(
                    group.policy,
                    move(group.rows),
                    {name: move(column) for name, column in group.params.items()},
                )
                for group in self.groups
            ),
            pairs=None if pairs is None else Pairs(move(pairs.partner), move(pairs.twin), move(pairs.member)),
        )


def _truncation(laws: Sequence[ProposalLaw]) -> Truncation | None:
    if not any(law.limited for law in laws):
        return None
    return Truncation(
        top_k=torch.tensor([law.top_k or 0 for law in laws], dtype=torch.int64),
        top_p=torch.tensor([1.0 if law.top_p is None else law.top_p for law in laws]),
        min_p=torch.tensor([0.0 if law.min_p is None else law.min_p for law in laws]),
    )


def _forced(rows: Sequence[ChildParams]) -> torch.Tensor | None:
    if all(row.forced is None for row in rows):
        return None
    longest = max(len(row.forced or ()) for row in rows)
    table = torch.full((len(rows), longest + 1), -1, dtype=torch.int64)
    for i, row in enumerate(rows):
        for j, token in enumerate(row.forced or ()):
            table[i, j] = token
    return table


def _groups(policies: Sequence[Policy | None]) -> tuple[PolicyGroup, ...]:
    members: dict[type[Policy], dict[int, Policy]] = defaultdict(dict)
    for i, policy in enumerate(policies):
        if policy is not None:
            members[type(policy)][i] = policy
    return tuple(
        PolicyGroup(kind, torch.tensor(list(rows)), kind.columns(list(rows.values())))
        for kind, rows in members.items()
    )


def _pairs(rows: Sequence[ChildParams]) -> Pairs | None:
    if all(row.pair is None for row in rows):
        return None
    place: dict[tuple[str | None, str], int] = {(row.pair, row.role): i for i, row in enumerate(rows)}
    partner = [
        place.get((row.pair, "twin" if row.role == "main" else "main"), i) for i, row in enumerate(rows)
    ]
    return Pairs(
        partner=torch.tensor(partner, dtype=torch.int64),
        twin=torch.tensor([row.pair is not None and row.role == "twin" for row in rows]),
        member=torch.tensor([row.pair is not None for row in rows]),
    )
