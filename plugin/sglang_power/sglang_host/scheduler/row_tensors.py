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


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of the host on a device; the host does not wait."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class Truncation:
    """Rows that ask for the same searches, [group] each; None where the group does not ask for that one.

    Args:
        rows: int64, which of the active rows, ascending.
        top_k: int64.  top_p, min_p: float32.
    """

    rows: torch.Tensor
    top_k: torch.Tensor | None = None
    top_p: torch.Tensor | None = None
    min_p: torch.Tensor | None = None


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
class Bans:
    """Banned tokens, [bans] int64 each: which active row, which token."""

    rows: torch.Tensor
    tokens: torch.Tensor


@dataclass(frozen=True)
class RowTensors:
    """Parameters of the active rows, [active] each unless said otherwise.

    Args:
        indices, others: int64, batch positions of the active rows and ([batch - active]) of all others.
        kappa: float32.  seeds: int64.
        greedy: int64 [greedy], which of the active rows take their most likely token; None where none does.
        truncation: disjoint groups of the rows that truncate otherwise.
        forced: int64 [active, longest + 1], -1 where the token is drawn, as after the last forced one; None
            where no row forces.
        origins: int64, position of the row that the first new token is drawn from.
        groups: the rows of each policy.
        pairs: None where no row is paired.
        bans: None where no row bans a token.
    """

    indices: torch.Tensor
    others: torch.Tensor
    kappa: torch.Tensor
    seeds: torch.Tensor
    greedy: torch.Tensor | None
    truncation: tuple[Truncation, ...]
    forced: torch.Tensor | None
    origins: torch.Tensor
    groups: tuple[PolicyGroup, ...] = ()
    pairs: Pairs | None = None
    bans: Bans | None = None

    @classmethod
    def of(
        cls,
        active: Sequence[ChildParams],
        indices: Sequence[int],
        batch: int,
        banned: Sequence[Sequence[int]] = (),
    ) -> RowTensors:
        """The tensors of a batch's active rows, on the host.

        Args:
            active, indices: the rows and their positions in the batch.
            batch: rows of the whole batch.
            banned: the tokens that each active row bans; none at all where it is empty.
        """
        laws = [row.law for row in active]
        others = sorted(set(range(batch)) - set(indices))
        return cls(
            indices=torch.tensor(indices, dtype=torch.int64),
            others=torch.tensor(others, dtype=torch.int64),
            kappa=torch.tensor([law.kappa for law in laws], dtype=torch.float32),
            seeds=torch.tensor([row.seed for row in active], dtype=torch.int64),
            greedy=_greedy(laws),
            truncation=_truncation(laws),
            forced=_forced(active),
            origins=torch.tensor([row.origin for row in active], dtype=torch.int64),
            groups=_groups([row.policy for row in active]),
            pairs=_pairs(active),
            bans=_bans(banned),
        )

    def to(self, device: torch.device) -> RowTensors:
        """The same on a device."""
        if device.type == "cpu":
            return self

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return moved(tensor, device)

        def move_some(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else move(tensor)

        pairs, bans = self.pairs, self.bans
        return RowTensors(
            indices=move(self.indices),
            others=move(self.others),
            kappa=move(self.kappa),
            seeds=move(self.seeds),
            greedy=move_some(self.greedy),
            truncation=tuple(
                Truncation(
                    move(group.rows), move_some(group.top_k), move_some(group.top_p), move_some(group.min_p)
                )
                for group in self.truncation
            ),
            forced=move_some(self.forced),
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
            bans=None if bans is None else Bans(move(bans.rows), move(bans.tokens)),
        )


def _greedy(laws: Sequence[ProposalLaw]) -> torch.Tensor | None:
    """The rows of top_k = 1, whatever else they say: the other limits never cut the most likely token."""
    rows = [i for i, law in enumerate(laws) if law.top_k == 1]
    return torch.tensor(rows, dtype=torch.int64) if rows else None


def _truncation(laws: Sequence[ProposalLaw]) -> tuple[Truncation, ...]:
    members: dict[tuple[bool, ...], list[int]] = defaultdict(list)
    for i, law in enumerate(laws):
        if law.limited and law.top_k != 1:
            members[law.top_k is not None, law.top_p is not None, law.min_p is not None].append(i)
    return tuple(_limits(rows, [laws[i] for i in rows]) for rows in members.values())


def _limits(rows: Sequence[int], laws: Sequence[ProposalLaw]) -> Truncation:
    """The limits of rows that name the same ones."""

    def column(values: list[float] | list[int], dtype: torch.dtype) -> torch.Tensor | None:
        return torch.tensor(values, dtype=dtype) if values else None

    return Truncation(
        rows=torch.tensor(rows, dtype=torch.int64),
        top_k=column([law.top_k for law in laws if law.top_k is not None], torch.int64),
        top_p=column([law.top_p for law in laws if law.top_p is not None], torch.float32),
        min_p=column([law.min_p for law in laws if law.min_p is not None], torch.float32),
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


def _bans(banned: Sequence[Sequence[int]]) -> Bans | None:
    places = [(row, token) for row, tokens in enumerate(banned) for token in tokens]
    if not places:
        return None
    table = torch.tensor(places, dtype=torch.int64)
    return Bans(table[:, 0].contiguous(), table[:, 1].contiguous())


def _pairs(rows: Sequence[ChildParams]) -> Pairs | None:
    couplings = [row.coupling for row in rows]
    if not any(couplings):
        return None
    place = {(each.name, each.role): i for i, each in enumerate(couplings) if each is not None}
    partner = [
        i if each is None else place.get((each.name, "twin" if each.role == "main" else "main"), i)
        for i, each in enumerate(couplings)
    ]
    return Pairs(
        partner=torch.tensor(partner, dtype=torch.int64),
        twin=torch.tensor([each is not None and each.role == "twin" for each in couplings]),
        member=torch.tensor([each is not None for each in couplings]),
    )
