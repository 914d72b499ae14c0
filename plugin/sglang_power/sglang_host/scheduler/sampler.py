"""The sampler that serves power rows; SGLang's own serves all others. Scheduler process.

Power rows never pass through SGLang's sampler, and its rows never through ours: a mixed batch is split.
Statistics leave through the auxiliary-output channel, without a host synchronisation; those of reported rows
are taken around whatever draws them.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from sglang.srt.layers import sampler as host
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.managers.auxiliary_output import append_auxiliary_output
from sglang.srt.runtime_context import get_exec, get_server_args
from sglang_power_kernels import available_backends

from sglang_power.errors import HostError
from sglang_power.server.config import server_config
from sglang_power.sglang_host.scheduler.drawing import Drawn, draw_rows
from sglang_power.sglang_host.scheduler.reported import ReportedRows
from sglang_power.sglang_host.scheduler.row_memory import line_begins, read_memories, write_memories
from sglang_power.sglang_host.scheduler.rows import RowBlock
from sglang_power.sglang_host.scheduler.statistics import DeviceStatistics

BACKEND_NAME = "power"


class RowSampler(host.Sampler):  # type: ignore[misc]  # the base is untyped
    """Dispatches rows between SGLang's sampler and the plugin's kernels."""

    def __init__(self) -> None:
        super().__init__()
        if get_exec().kernel.sampling_backend == BACKEND_NAME:
            raise HostError(
                "--sampling-backend power could not be resolved to a built-in backend on this version of "
                "SGLang; start the server without it, power sampling needs no flag"
            )
        self._draws_with = _sampling_backend(get_server_args().device)

    def forward(
        self,
        logits_output: Any,
        sampling_info: Any,
        return_logprob: bool,
        top_logprobs_nums: list[int],
        token_ids_logprobs: list[list[int] | None],
        positions: torch.Tensor,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Sample one token per row, with the arguments of SGLang's Sampler.forward (0.5.20 to 0.5.23)."""
        block: RowBlock | None = getattr(sampling_info, "power_rows", None)
        reported: ReportedRows | None = getattr(sampling_info, "power_reported", None)
        base = None if reported is None else reported.base_logits(logits_output, sampling_info)
        draw = super().forward if block is None else functools.partial(self._draw_mixed, block)
        ids: torch.Tensor = draw(
            logits_output,
            sampling_info,
            return_logprob,
            top_logprobs_nums,
            token_ids_logprobs,
            positions,
            **kwargs,
        )
        if reported is not None and base is not None:
            reported.report(logits_output, base, ids)
        return ids

    def _draw_mixed(
        self,
        block: RowBlock,
        logits_output: Any,
        sampling_info: Any,
        return_logprob: bool,
        top_logprobs_nums: list[int],
        token_ids_logprobs: list[list[int] | None],
        positions: torch.Tensor,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Sample the rows of a batch of which some are the plugin's."""
        logits = logits_output.next_token_logits
        drawn = _draw(logits, positions, block, sampling_info.power_previous, self._draws_with)
        logits_output.auxiliary_device_output = append_auxiliary_output(
            logits_output.auxiliary_device_output, DeviceStatistics(block, drawn.statistics)
        )
        if block.whole:
            ids = drawn.ids
        else:
            ids = self._with_others(drawn.ids, logits_output, sampling_info, block, positions)
        if return_logprob:
            source = kwargs.get("logprob_logits")
            source = logits if source is None else source
            self._write_logprobs(
                logits_output, source, sampling_info, top_logprobs_nums, token_ids_logprobs, ids
            )
        return ids

    def _with_others(
        self,
        own: torch.Tensor,
        logits_output: Any,
        sampling_info: Any,
        block: RowBlock,
        positions: torch.Tensor,
    ) -> torch.Tensor:
        """The batch's ids: SGLang's sampler draws its own rows, from a copy that it may overwrite."""
        logits = logits_output.next_token_logits
        rows = block.on(logits.device)
        if sampling_info.has_custom_logit_processor:
            self._preprocess_logits(logits, sampling_info)
        info, others = _info_of_others(sampling_info, block, rows.others)
        part = LogitsProcessorOutput(next_token_logits=logits.index_select(0, others))
        count = len(others)
        drawn = super().forward(
            part, info, False, [0] * count, [None] * count, positions.index_select(0, others)
        )
        logits_output.sampling_mask_output = getattr(part, "sampling_mask_output", None)
        ids: torch.Tensor = drawn.new_empty((len(block.rows),)).index_copy_(0, others, drawn)
        return ids.index_copy_(0, rows.indices, own.to(ids.dtype))

    def _write_logprobs(
        self,
        logits_output: Any,
        logits: torch.Tensor,
        sampling_info: Any,
        top_logprobs_nums: list[int],
        token_ids_logprobs: list[list[int] | None],
        ids: torch.Tensor,
    ) -> None:
        """Log probabilities as SGLang defines them: at the request's temperature, before any cut."""
        scaled = logits if host.SGLANG_RETURN_ORIGINAL_LOGPROB else logits / sampling_info.temperatures
        result = self.output_logprob_processor.compute_logprobs(
            scaled.log_softmax(dim=-1), top_logprobs_nums, token_ids_logprobs, ids
        )
        result.write_output_to(logits_output)


def _sampling_backend(device: str) -> str:
    """The configured backend, which has to run on the server's device."""
    name = server_config().kernels.sampling
    usable = available_backends(device)
    if name not in ("auto", *usable):
        raise HostError(f"kernels.sampling={name!r} cannot run on {device}; use auto or {', '.join(usable)}")
    return name


def _draw(
    logits: torch.Tensor,
    positions: torch.Tensor,
    block: RowBlock,
    previous: torch.Tensor | None,
    backend: str,
) -> Drawn:
    """The power rows' part of one step."""
    rows = block.on(logits.device)
    if not block.whole:
        logits, positions = logits.index_select(0, rows.indices), positions.index_select(0, rows.indices)
    ends_line = memory = None
    if "ends_line" in block.needs:
        assert previous is not None, "the hook on ModelRunner.sample did not run"
        in_answer = (positions >= rows.origins)[:, None]
        ends_line = _lines(block, previous.index_select(0, rows.indices), in_answer)
    memories = [row.memory for row in block.members]
    if "memory" in block.needs:
        memory = read_memories(memories, logits.device)
    drawn = draw_rows(logits, positions, rows, ends_line=ends_line, memory=memory, backend=backend)
    if drawn.memory is not None:
        write_memories(memories, drawn.memory)
    return drawn


def _lines(block: RowBlock, previous: torch.Tensor, in_answer: torch.Tensor) -> torch.Tensor:
    """[rows, 1] bool, whether each row's token begins a line; what rows of an answer saw is remembered."""
    tokenizer = next(row.tokenizer for row in block.members if row.tokenizer is not None)
    lines = [row.line for row in block.members]
    before = read_memories(lines, previous.device)
    after = line_begins(previous, before, tokenizer)
    write_memories(lines, torch.where(in_answer, after, before))
    return after == 1


class _NoPenalizers:
    """Penalties are in the logits by the time the sampler runs; a copy of the batch needs no penalizers."""

    def filter(self, keep_indices: torch.Tensor) -> None:
        """Nothing to filter."""


def _info_of_others(sampling_info: Any, block: RowBlock, others: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """SGLang's part of a mixed batch: its information, and which rows it draws.

    Requests that ask for sampling masks get them for a whole batch, so there SGLang draws every row.
    """
    info = dataclasses.replace(
        sampling_info,
        penalizer_orchestrator=_NoPenalizers(),
        power_rows=None,
        power_reported=None,
    )
    if getattr(info, "sampling_mask_batch_indices", None) is not None:
        return info, torch.arange(len(block.rows), device=others.device)
    kept = [i for i, row in enumerate(block.rows) if row is None]
    info.filter_batch(kept, others)
    info.has_custom_logit_processor = False  # applied to the whole batch before
    return info, others
