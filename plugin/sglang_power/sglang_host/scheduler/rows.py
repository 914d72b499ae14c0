"""Which rows of a batch the plugin samples, and with which parameters. Scheduler process.

A request carries its parameters flat in `custom_params` (ChildParams); SGLang does not hand those to the
sampler, so SamplingBatchInfo is replaced by a subclass with more fields, which follow the batch through
filtering and merging (SGLang 0.5.20 to 0.5.23).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import FINISH_ABORT
from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

from sglang_power.sglang_host.child_params import (
    CHILD,
    GREEDY_FIELD,
    POLICY,
    REPORTED,
    ChildParams,
    policy_of,
)
from sglang_power.sglang_host.host_sampling import law_of
from sglang_power.sglang_host.scheduler.batch_rows import BatchRows, merged, some
from sglang_power.sglang_host.scheduler.penalties import CountedRow, CountedRows, CountTable
from sglang_power.sglang_host.scheduler.reported import ReportedRows, reported_row
from sglang_power.sglang_host.scheduler.row_memory import RowMemory, begins_line
from sglang_power.sglang_host.scheduler.row_tensors import RowTensors

_MEMORY = "_sglang_power_memory"
_ADVANCED = "_sglang_power_advanced"

BAN = -100.0
"""A logit_bias of at most this bans its token: the end of OpenAI's scale, whose documents call it a ban. To
SGLang it is a number to add, which leaves such logits finite."""


@dataclass(frozen=True)
class PowerRow:
    """One row that the plugin samples.

    Args:
        params: what it carries.
        memory: what its policy remembers; None where the policy needs none.
        tokenizer: of the served model, for policies that look at text.
        line: whether a line begins (1) or not (0) in front of the last token that the row follows; for
            policies that look at text.
        banned: tokens that the request's logit_bias bans, for rows with a policy.
        counted: the tokens of its answer, for rows with penalties.
    """

    params: ChildParams
    memory: RowMemory | None = None
    tokenizer: Any = None
    line: RowMemory | None = None
    banned: tuple[int, ...] = ()
    counted: CountedRow | None = None


@dataclass(frozen=True)
class RowBlock(BatchRows[PowerRow]):
    """The power rows of one batch; None where a row belongs to SGLang."""

    @classmethod
    def of(cls, *params: ChildParams | None) -> RowBlock:
        """Return rows without memory."""
        return cls(tuple(None if row is None else PowerRow(row) for row in params))

    @cached_property
    def active(self) -> list[ChildParams]:
        """Their parameters."""
        return [row.params for row in self.members]

    @cached_property
    def needs(self) -> frozenset[str]:
        """What the policies of this batch look at beside the logits."""
        return frozenset().union(*(row.policy.needs for row in self.active if row.policy is not None))

    @cached_property
    def penalised(self) -> dict[int, CountedRow]:
        """The rows with penalties, by their positions in the batch."""
        rows = zip(self.indices, self.members, strict=True)
        return {index: row.counted for index, row in rows if row.counted is not None}

    def counted_in(self, table: CountTable) -> CountedRows:
        """The rows with penalties in a table; made once per composition of the batch."""
        if "_counted" not in self.__dict__:
            self.__dict__["_counted"] = table.place(list(self.penalised), list(self.penalised.values()))
        rows: CountedRows = self.__dict__["_counted"]
        return rows

    @property
    def whole(self) -> bool:
        """Whether every row of the batch is the plugin's."""
        return len(self.indices) == len(self.rows)

    def on(self, device: torch.device) -> RowTensors:
        """The tensors on a device; made once per composition of the batch and device."""
        cache: dict[torch.device, RowTensors] = self.__dict__.setdefault("_on_device", {})
        if device not in cache:
            banned = [row.banned for row in self.members]
            cache[device] = RowTensors.of(self.active, self.indices, len(self.rows), banned).to(device)
        return cache[device]


@dataclasses.dataclass
class PowerSamplingBatchInfo(SamplingBatchInfo):  # type: ignore[misc]  # the base is untyped
    """SGLang's batch information with the plugin's rows; None where the batch has none.

    Set by the hook on ModelRunner.sample, just before the sampler runs: `power_previous`, the ids of the
    tokens that the rows follow, [batch], where a policy needs them; and `power_unpenalised`, see
    `ReportedRows.unpenalised`.
    """

    power_rows: RowBlock | None = None
    power_previous: torch.Tensor | None = None
    power_reported: ReportedRows | None = None
    power_unpenalised: torch.Tensor | None = None

    def adjusted_from_schedule_batch(self, batch: Any, vocab_size: int) -> None:
        """Read the parameters of a new batch."""
        super().adjusted_from_schedule_batch(batch, vocab_size)
        self.power_rows = some(RowBlock(tuple(_row_of(req) for req in batch.reqs)))
        self.power_reported = some(ReportedRows(tuple(reported_row(req) for req in batch.reqs)))

    def adjusted_filter_batch(self, keep_indices: Sequence[int], keep_indices_device: torch.Tensor) -> None:
        """Follow the batch when requests leave it."""
        super().adjusted_filter_batch(keep_indices, keep_indices_device)
        if self.power_rows is None and self.power_reported is None:
            return
        kept = [int(i) for i in keep_indices]
        if self.power_rows is not None:
            self.power_rows = some(self.power_rows.keep(kept))
        if self.power_reported is not None:
            self.power_reported = some(self.power_reported.keep(kept))

    def adjusted_merge_batch(self, other: SamplingBatchInfo) -> None:
        """Follow the batch when another one joins; `len(self)` is the merged length here."""
        super().adjusted_merge_batch(other)
        sizes = len(self) - len(other), len(other)
        rows, reported = getattr(other, "power_rows", None), getattr(other, "power_reported", None)
        self.power_rows = merged(RowBlock, self.power_rows, rows, sizes)
        self.power_reported = merged(ReportedRows, self.power_reported, reported, sizes)


def _row_of(req: Any) -> PowerRow | None:
    """A request's row. A power request that no orchestrator handled must not run plain."""
    flat = req.sampling_params.custom_params
    if not isinstance(flat, dict) or flat.get("sampler") in (None, REPORTED):
        return None
    if flat["sampler"] == CHILD:
        params = ChildParams.from_custom_params(flat)
        advance_grammar(req, params.kept)
        return _power_row(req, params)
    if flat["sampler"] == POLICY:
        return _power_row(req, _native_params(req, flat))
    if flat["sampler"] != "none" and req.custom_logit_processor is None and req.to_finish is None:
        req.to_finish = FINISH_ABORT(
            f"sampler={flat['sampler']!r} reached the scheduler without sglang-power's orchestrator: the "
            "plugin is not loaded in the process that took the request. Run 'sglang-power check'.",
            HTTPStatus.INTERNAL_SERVER_ERROR,
            "InternalServerError",
        )
    return None


def advance_grammar(req: Any, kept: int) -> None:
    """Show a child's grammar, once, the tokens of the answer that are part of its prompt.

    Rows are made again behind chunks and retractions; SGLang keeps the grammar on the request then.

    Args:
        req: SGLang's request.
        kept: how many there are, at the end of its prompt.
    """
    if not kept or req.grammar is None or getattr(req, _ADVANCED, None) is req.grammar:
        return
    for token in req.origin_input_ids[-kept:]:
        req.grammar.accept_token(token)
    setattr(req, _ADVANCED, req.grammar)


def _power_row(req: Any, params: ChildParams) -> PowerRow:
    """The row with its memory, which lives on the request: retraction and re-prefill make a new row of it.

    Where a line begins is read again from the whole sequence instead, which is known whenever rows are made.
    """
    counted = _counted(req, params)
    if params.policy is None:
        return PowerRow(params, counted=counted)
    needs, banned = params.policy.needs, banned_tokens(req.sampling_params.logit_bias)
    memory = tokenizer = line = None
    if "memory" in needs:
        memory = getattr(req, _MEMORY, None) or RowMemory()
        setattr(req, _MEMORY, memory)
    if "ends_line" in needs:
        tokenizer = req.tokenizer
        backwards = itertools.chain(reversed(req.output_ids), reversed(req.origin_input_ids))
        line = RowMemory(int(begins_line(backwards, tokenizer)))
    return PowerRow(params, memory, tokenizer, line, banned, counted)


def _counted(req: Any, params: ChildParams) -> CountedRow | None:
    """The row's answer so far, as far as the host knows it whenever rows are made: all that is prefilled."""
    if params.penalties is None:
        return None
    prompt, output = req.origin_input_ids, req.output_ids
    answer = [*prompt[len(prompt) - params.kept :], *output]
    return CountedRow(params.penalties, answer, last=len(prompt) + len(output) - 1)


def banned_tokens(logit_bias: Mapping[str, float] | None) -> tuple[int, ...]:
    """Return the tokens that a logit_bias bans: those whose bias is at most BAN."""
    return tuple(int(token) for token, bias in (logit_bias or {}).items() if bias <= BAN)


def _native_params(req: Any, flat: dict[str, Any]) -> ChildParams:
    """A request that SGLang runs itself: its own sampling parameters, as SGLang has normalised them."""
    law = law_of(req.sampling_params, policy_of(flat), greedy=flat.get(GREEDY_FIELD, False))
    return ChildParams(law=law, seed=flat["seed"], origin=len(req.origin_input_ids) - 1, native=True)
