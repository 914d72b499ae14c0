"""Which rows of a batch the plugin samples, and with which parameters. Scheduler process.

A child request carries flat scalars in `custom_params` (ChildParams); SGLang does not hand those to the
sampler, so SamplingBatchInfo is replaced by a subclass with one more field that follows the batch
through filtering and merging (SGLang 0.5.20 to 0.5.23).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import FINISH_ABORT
from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

from sglang_power.sglang_host.child_params import CHILD, ChildParams
from sglang_power.types import ProposalLaw


@dataclass(frozen=True)
class RowBlock:
    """The power rows of one batch; None where a row belongs to SGLang. Immutable, so it may be shared."""

    rows: tuple[ChildParams | None, ...]

    @cached_property
    def indices(self) -> list[int]:
        """Batch positions of the power rows."""
        return [i for i, row in enumerate(self.rows) if row is not None]

    @cached_property
    def active(self) -> list[ChildParams]:
        """The power rows, in batch order."""
        return [row for row in self.rows if row is not None]

    def keep(self, indices: Sequence[int]) -> RowBlock:
        """The block of a filtered batch."""
        return RowBlock(tuple(self.rows[i] for i in indices))

    def followed_by(self, other: RowBlock) -> RowBlock:
        """The block of two merged batches."""
        return RowBlock(self.rows + other.rows)

    @cached_property
    def tensors(self) -> RowTensors:
        """The active rows' parameters on the host; built once per composition of the batch."""
        laws = [row.law for row in self.active]
        return RowTensors(
            indices=torch.tensor(self.indices, dtype=torch.int64),
            kappa=torch.tensor([law.kappa for law in laws], dtype=torch.float32),
            seeds=torch.tensor([row.seed for row in self.active], dtype=torch.int64),
            truncation=_truncation(laws),
            forced=_forced(self.active),
            origins=torch.tensor([row.origin for row in self.active], dtype=torch.int64),
        )

    def on(self, device: torch.device) -> RowTensors:
        """The tensors on a device; copied once per composition of the batch and device."""
        cache: dict[torch.device, RowTensors] = self.__dict__.setdefault("_on_device", {})
        if device not in cache:
            cache[device] = self.tensors.to(device)
        return cache[device]


@dataclass(frozen=True)
class Truncation:
    """Per-row truncation, [active] each; values that keep everything mean off."""

    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor


@dataclass(frozen=True)
class RowTensors:
    """Parameters of the active rows, [active] each.

    Args:
        indices: int64, batch positions.
        kappa: float32.  seeds: int64.
        truncation: None where no row truncates.
        forced: int64 [active, longest], -1 where the token is drawn; None where no row forces.
        origins: int64, position of the row that the first new token is drawn from.
    """

    indices: torch.Tensor
    kappa: torch.Tensor
    seeds: torch.Tensor
    truncation: Truncation | None
    forced: torch.Tensor | None
    origins: torch.Tensor

    def to(self, device: torch.device) -> RowTensors:
        """The same on a device, through pinned memory so that the host does not wait."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            if device.type == "cpu":
                return tensor
            return tensor.pin_memory().to(device, non_blocking=True)

        return RowTensors(
            indices=move(self.indices),
            kappa=move(self.kappa),
            seeds=move(self.seeds),
            truncation=None
            if self.truncation is None
            else Truncation(
                move(self.truncation.top_k), move(self.truncation.top_p), move(self.truncation.min_p)
            ),
            forced=None if self.forced is None else move(self.forced),
            origins=move(self.origins),
        )


def _truncation(laws: Sequence[ProposalLaw]) -> Truncation | None:
    if not any(law.truncated for law in laws):
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
    table = torch.full((len(rows), longest), -1, dtype=torch.int64)
    for i, row in enumerate(rows):
        for j, token in enumerate(row.forced or ()):
            table[i, j] = token
    return table


@dataclasses.dataclass
class PowerSamplingBatchInfo(SamplingBatchInfo):  # type: ignore[misc]  # the base is untyped
    """SGLang's batch information with the plugin's rows; None where the batch has none."""

    power_rows: RowBlock | None = None

    def adjusted_from_schedule_batch(self, batch: Any, vocab_size: int) -> None:
        """Read the child parameters of a new batch."""
        super().adjusted_from_schedule_batch(batch, vocab_size)
        rows = tuple(_row_of(req) for req in batch.reqs)
        self.power_rows = RowBlock(rows) if any(row is not None for row in rows) else None

    def adjusted_filter_batch(self, keep_indices: Sequence[int], keep_indices_device: torch.Tensor) -> None:
        """Follow the batch when requests leave it."""
        super().adjusted_filter_batch(keep_indices, keep_indices_device)
        if self.power_rows is not None:
            kept = self.power_rows.keep([int(i) for i in keep_indices])
            self.power_rows = kept if kept.indices else None

    def adjusted_merge_batch(self, other: SamplingBatchInfo) -> None:
        """Follow the batch when another one joins; `len(self)` is the merged length here."""
        super().adjusted_merge_batch(other)
        theirs: RowBlock | None = getattr(other, "power_rows", None)
        if self.power_rows is None and theirs is None:
            return
        mine = self.power_rows or RowBlock((None,) * (len(self) - len(other)))
        self.power_rows = mine.followed_by(theirs or RowBlock((None,) * len(other)))


def _row_of(req: Any) -> ChildParams | None:
    """A request's child parameters. A power request that no orchestrator handled must not run plain."""
    params = req.sampling_params.custom_params
    if not isinstance(params, dict) or "sampler" not in params:
        return None
    if params["sampler"] == CHILD:
        return ChildParams.from_custom_params(params)
    if params["sampler"] != "none" and req.custom_logit_processor is None and req.to_finish is None:
        req.to_finish = FINISH_ABORT(
            f"sampler={params['sampler']!r} reached the scheduler without sglang-power's orchestrator: the "
            "plugin is not loaded in the process that took the request. Run 'sglang-power check'.",
            HTTPStatus.INTERNAL_SERVER_ERROR,
            "InternalServerError",
        )
    return None
