"""The sampler that serves power rows; SGLang's own serves all others. Scheduler process.

Statistics are taken from the logits at temperature 1, before SGLang's sampler scales them in place, and
leave through the auxiliary-output channel: no host synchronisation. Draws are a function of (child seed,
position), so the extra calls on prefill chunks, overshoot steps and after retraction change nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.sampler import Sampler
from sglang.srt.managers.auxiliary_output import append_auxiliary_output
from sglang.srt.runtime_context import get_exec
from sglang_power_kernels import counter_uniforms, row_statistics, sample_rows, truncation_bounds

from sglang_power.errors import HostError
from sglang_power.sglang_host.rows import RowBlock, RowTensors
from sglang_power.sglang_host.statistics import DeviceStatistics

BACKEND_NAME = "power"


class PowerSampler(Sampler):  # type: ignore[misc]  # the base is untyped
    """Dispatches rows between SGLang's sampler and the plugin's kernels."""

    def __init__(self) -> None:
        super().__init__()
        if get_exec().kernel.sampling_backend == BACKEND_NAME:
            raise HostError(
                "--sampling-backend power could not be resolved to a built-in backend on this version of "
                "SGLang; start the server without it, power sampling needs no flag"
            )

    def forward(self, logits_output: Any, sampling_info: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Sample one token per row; see SGLang's Sampler.forward (0.5.20 to 0.5.23)."""
        block: RowBlock | None = getattr(sampling_info, "power_rows", None)
        if block is None:
            ids: torch.Tensor = super().forward(logits_output, sampling_info, *args, **kwargs)
            return ids
        positions: torch.Tensor = args[3] if len(args) > 3 else kwargs["positions"]
        logits = logits_output.next_token_logits
        rows = block.on(logits.device)
        whole_batch = len(block.indices) == len(block.rows)
        own_logits = logits if whole_batch else logits.index_select(0, rows.indices)
        own_positions = positions if whole_batch else positions.index_select(0, rows.indices)
        own_ids, statistics = sample_with_statistics(own_logits, own_positions, rows)
        logits_output.auxiliary_device_output = append_auxiliary_output(
            logits_output.auxiliary_device_output, DeviceStatistics(block, statistics)
        )
        if whole_batch:
            return own_ids
        ids = super().forward(logits_output, sampling_info, *args, **kwargs)
        return ids.index_copy(0, rows.indices, own_ids.to(ids.dtype))


def sample_with_statistics(
    logits: torch.Tensor, positions: torch.Tensor, rows: RowTensors
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw (or force) one token per row and take the statistics of its row.

    Args:
        logits: [rows, vocab] base-law logits.
        positions: [rows] int64, absolute position of the row.
        rows: parameters, [rows] each.

    Returns:
        ids [rows] int64, within the vocabulary even where the logits are not numbers, and statistics
        [rows, len(ROW_FIELDS)] float32, nats (not a number for such rows, which the chain rejects).
    """
    keep_min = None
    if rows.truncation is not None:
        keep_min = truncation_bounds(
            logits,
            kappa=rows.kappa,
            top_k=rows.truncation.top_k,
            top_p=rows.truncation.top_p,
            min_p=rows.truncation.min_p,
            validate=False,
        )
    uniforms = counter_uniforms(rows.seeds, positions)
    drawn = sample_rows(
        logits, kappa=rows.kappa, uniforms=uniforms, keep_min=keep_min, validate=False
    ).clamp_min(0)
    ids = _apply_forced(drawn, positions, rows)
    stats = row_statistics(logits, ids, kappa=rows.kappa, keep_min=keep_min, validate=False)
    columns = [stats.log_p, stats.log_q, stats.log_z, stats.entropy, stats.varentropy, stats.gap]
    return ids, torch.stack(columns, dim=1)


def _apply_forced(drawn: torch.Tensor, positions: torch.Tensor, rows: RowTensors) -> torch.Tensor:
    if rows.forced is None:
        return drawn
    offset = (positions - rows.origins).clamp(0, rows.forced.shape[1] - 1)
    forced = rows.forced.gather(1, offset.unsqueeze(1)).squeeze(1)
    return torch.where(forced >= 0, forced, drawn)
