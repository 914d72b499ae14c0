"""Carries row statistics from the device to the request, and ends calls that are over. Scheduler process.

SGLang copies a DeviceAuxiliaryOutput with the token ids (no extra synchronisation) and calls `consume`
when tokens are committed, before they are streamed. State that must survive retraction, chunked prefill
and overshoot steps lives on the request and advances only with its committed output position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import FINISH_ABORT, FINISH_LENGTH

from sglang_power.algorithms.monitors import RowMonitor
from sglang_power.sglang_host import probe
from sglang_power.sglang_host.child_params import APART, META_KEY, NOT_NUMBERS, ChildParams
from sglang_power.sglang_host.scheduler.committed import append_record, count_pass, export_kernel_calls
from sglang_power.sglang_host.scheduler.rows import RowBlock

_MONITORS = "_sglang_power_monitors"


@dataclass(frozen=True)
class DeviceStatistics:
    """Statistics on the device: [active rows, len(ROW_FIELDS)] float32, nats."""

    block: RowBlock
    values: torch.Tensor

    def copy_to_host(self, copy_tensor: Callable[[torch.Tensor], torch.Tensor]) -> HostStatistics:
        """Start the asynchronous copy."""
        return HostStatistics(self.block, copy_tensor(self.values))


@dataclass(frozen=True)
class HostStatistics:
    """The same on the host, valid once the copy is done."""

    block: RowBlock
    values: torch.Tensor

    def consume(self, batch: Any, commits: Sequence[Any]) -> None:
        """Attach the records of newly committed tokens to their requests."""
        records = self.values.tolist()
        export_kernel_calls()
        count_pass(batch)
        for index, params, record in zip(self.block.indices, self.block.active, records, strict=True):
            commit = commits[index]
            if commit is not None:
                _commit(batch.reqs[index], params, commit.output_index, record)


def _commit(req: Any, params: ChildParams, position: int, record: list[float]) -> None:
    if params.native:
        _check_numbers(req, record)
        return
    if params.probe:
        if req.customized_info is None:
            req.customized_info = {}
        req.customized_info.setdefault(META_KEY, []).append(probe.scheduler_report())
        return
    append_record(req, META_KEY, position, record)
    if req.finished() or req.to_finish is not None:
        return
    if _is_broken(record) or _is_apart(params, record) or _is_over(req, params, position, record):
        req.to_finish = FINISH_LENGTH(length=len(req.output_ids))


def _check_numbers(req: Any, record: list[float]) -> None:
    """End a request that SGLang answers itself when its logits, or the law made of them, are no numbers."""
    if _is_broken(record) and not req.finished() and req.to_finish is None:
        req.to_finish = FINISH_ABORT(
            NOT_NUMBERS,
            HTTPStatus.INTERNAL_SERVER_ERROR,
            "InternalServerError",
        )


def _is_broken(record: list[float]) -> bool:
    """The row has no law: what follows would be noise, and `children` fails the request."""
    return math.isnan(record[0]) or math.isnan(record[1])


def _is_apart(params: ChildParams, record: list[float]) -> bool:
    """A coupled row whose partner was not in the same step: its token does not count."""
    return params.coupling is not None and record[1] == APART


def _is_over(req: Any, params: ChildParams, index: int, record: list[float]) -> bool:
    """Show the request's monitors one committed row; whoever made the call decides again."""
    if not params.rules or index < params.known:
        return False
    monitors: list[RowMonitor] | None = getattr(req, _MONITORS, None)
    if monitors is None:  # made with the first committed token, on the request: they must survive retraction
        monitors = [rule.monitor() for rule in params.rules]
        setattr(req, _MONITORS, monitors)
    return any(monitor.ends(index - params.known, record) for monitor in monitors)
