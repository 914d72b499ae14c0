"""Rows whose statistics a client asked for, whoever draws their tokens. Scheduler process.

The statistics are of the base law p: softmax at temperature 1 of the model's logits with logit_bias, under
the masks of grammars and min_new_tokens, and before penalties, temperature and truncation. SGLang's sampler
works in place, so the rows are copied before it runs; nothing of what it does is changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from sglang.srt.managers.auxiliary_output import append_auxiliary_output
from sglang_power_kernels import row_statistics

from sglang_power.sglang_host.child_params import POLICY, REPORTED, REPORTED_FIELD, STATISTICS_KEY
from sglang_power.sglang_host.scheduler.batch_rows import BatchRows
from sglang_power.sglang_host.scheduler.committed import append_record, export_kernel_calls
from sglang_power.sglang_host.scheduler.row_tensors import moved


@dataclass(frozen=True)
class ReportedRow:
    """One row whose statistics are reported.

    Args:
        penalised: SGLang changes its logits by what the answer already holds.
    """

    penalised: bool


def reported_row(req: Any) -> ReportedRow | None:
    """Return the entry of a request of SGLang's; None where it reports nothing."""
    flat = req.sampling_params.custom_params
    if not isinstance(flat, dict):
        return None
    sampler = flat.get("sampler")
    if sampler == REPORTED or (sampler == POLICY and flat.get(REPORTED_FIELD)):
        params = req.sampling_params
        additive = params.frequency_penalty or params.presence_penalty
        return ReportedRow(bool(additive) or params.repetition_penalty != 1.0)
    return None


@dataclass(frozen=True)
class ReportedTensors:
    """Where the reported rows are, on a device.

    Args:
        batch: [reported] int64, in the batch.
        penalised: [penalised] int64, those with penalties, in the batch.
        among: [penalised] int64, the same among the reported ones.
    """

    batch: torch.Tensor
    penalised: torch.Tensor
    among: torch.Tensor


@dataclass(frozen=True)
class ReportedRows(BatchRows[ReportedRow]):
    """The reported rows of one batch."""

    @cached_property
    def penalised(self) -> list[int]:
        """Return which of the reported rows have penalties."""
        return [i for i, row in enumerate(self.members) if row.penalised]

    def on(self, device: torch.device) -> ReportedTensors:
        """Return the tensors on a device; made once per composition of the batch and device."""
        cache: dict[torch.device, ReportedTensors] = self.__dict__.setdefault("_on_device", {})
        if device not in cache:
            places = (self.indices, [self.indices[i] for i in self.penalised], self.penalised)
            cache[device] = ReportedTensors(
                *(moved(torch.tensor(each, dtype=torch.int64), device) for each in places)
            )
        return cache[device]

    def unpenalised(self, logits: torch.Tensor) -> torch.Tensor | None:
        """Return [penalised, vocab] the model's logits of the rows with penalties, added in place later.

        Args:
            logits: [batch, vocab] as the model gave them.
        """
        return logits.index_select(0, self.on(logits.device).penalised) if self.penalised else None

    def base_logits(self, logits_output: Any, info: Any) -> torch.Tensor:
        """Return [reported, vocab] logits of the base law, a copy.

        Args:
            logits_output: SGLang's, with everything that it does to logits before it samples.
            info: the batch's PowerSamplingBatchInfo.
        """
        logits: torch.Tensor = logits_output.next_token_logits
        places = self.on(logits.device)
        rows = logits.index_select(0, places.batch)
        if not self.penalised:
            return rows
        free: torch.Tensor | None = info.power_unpenalised
        assert free is not None, "the hook on ModelRunner.sample did not run"
        if info.logit_bias is not None:
            free = free + info.logit_bias.index_select(0, places.penalised)
        masked = rows.index_select(0, places.among) == -math.inf
        return rows.index_copy_(0, places.among, free.to(rows.dtype).masked_fill(masked, -math.inf))

    def report(self, logits_output: Any, base: torch.Tensor, ids: torch.Tensor) -> None:
        """Attach the statistics of the drawn tokens to SGLang's output, without a host synchronisation.

        Args:
            logits_output: SGLang's.
            base: of `base_logits`.
            ids: [batch] the drawn tokens.
        """
        drawn = ids.index_select(0, self.on(ids.device).batch).long().clamp(0, base.shape[1] - 1)
        statistics = row_statistics(base, drawn, kappa=1.0, validate=False)
        columns = [statistics.log_p, statistics.entropy, statistics.varentropy, statistics.gap]
        logits_output.auxiliary_device_output = append_auxiliary_output(
            logits_output.auxiliary_device_output, DeviceReport(self, torch.stack(columns, dim=1))
        )


@dataclass(frozen=True)
class DeviceReport:
    """Statistics on the device: [reported, len(REPORTED_STATISTICS)] float32, nats."""

    rows: ReportedRows
    values: torch.Tensor

    def copy_to_host(self, copy_tensor: Callable[[torch.Tensor], torch.Tensor]) -> HostReport:
        """Start the asynchronous copy."""
        return HostReport(self.rows, copy_tensor(self.values))


@dataclass(frozen=True)
class HostReport:
    """The same on the host, valid once the copy is done."""

    rows: ReportedRows
    values: torch.Tensor

    def consume(self, batch: Any, commits: Sequence[Any]) -> None:
        """Attach the records of newly committed tokens to their requests."""
        export_kernel_calls()
        for index, record in zip(self.rows.indices, self.values.tolist(), strict=True):
            commit = commits[index]
            if commit is not None:
                append_record(batch.reqs[index], STATISTICS_KEY, commit.output_index, record)
