"""What every carrier of row statistics does where tokens are committed. Scheduler process."""

from __future__ import annotations

import math
import os
from typing import Any

from sglang_power_kernels import counters

from sglang_power.server.metrics import KernelMetrics, observe_pass

PROMETHEUS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
"""Set by SGLang's main process where the server exports metrics."""

_kernel_metrics = KernelMetrics()


def export_kernel_calls() -> None:
    """Add the kernel calls since the last time to the server's metrics, where it exports them."""
    if PROMETHEUS_DIRECTORY in os.environ:
        _kernel_metrics.export(counters())


def count_pass(batch: Any) -> None:
    """Count the forward pass of a batch with rows of a sampler in it, where the server exports metrics."""
    if PROMETHEUS_DIRECTORY in os.environ:
        observe_pass("decode" if batch.forward_mode.is_decode() else "extend")


def append_record(req: Any, key: str, position: int, record: list[float]) -> None:
    """Append the record of a committed token to those that a request sends back under a key.

    Args:
        req: SGLang's request.
        key: of `customized_info`, which becomes one of `meta_info`.
        position: of the token in the output, to which the records are aligned.
        record: of the row that it was drawn from.
    """
    if req.customized_info is None:
        req.customized_info = {}
    records: list[list[float]] = req.customized_info.setdefault(key, [])
    if len(records) != position:  # never seen; who reads records that are not numbers says so
        records[:] = (records + [[math.nan] * len(record)] * position)[:position]
    records.append(record)
