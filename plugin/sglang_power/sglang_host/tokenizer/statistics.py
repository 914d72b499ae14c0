"""The statistics of an answer's rows, from SGLang's responses into `meta_info.power`. Tokenizer process."""

from __future__ import annotations

from typing import Any

from sglang_power.errors import HostError
from sglang_power.samplers.report import finite
from sglang_power.sglang_host.child_params import STATISTICS_KEY
from sglang_power.types import REPORTED_STATISTICS

Columns = dict[str, list[float | None]]


class AnswerStatistics:
    """The statistics of one answer, in each of the responses that it comes in.

    Args:
        deltas: each response holds the tokens that are new in it, as with --incremental-streaming-output.
    """

    def __init__(self, deltas: bool) -> None:
        self._deltas, self._count = deltas, 0
        self._columns: Columns = {name: [] for name in REPORTED_STATISTICS}

    def of(self, answer: dict[str, Any]) -> Columns:
        """Return the statistics of a response's `output_ids`, and take SGLang's records out of it.

        Raises:
            HostError: the scheduler has sent none.
        """
        meta = answer["meta_info"]
        records: list[list[float]] = meta.pop(STATISTICS_KEY, [])
        if self._deltas:
            self._columns = {name: [] for name in REPORTED_STATISTICS}
        else:
            records = records[self._count :]
        self._count += len(records)
        for column, values in zip(self._columns.values(), zip(*records, strict=True), strict=False):
            column.extend(finite(value) for value in values)
        if meta.get("finish_reason") is not None:
            self._complete(meta)
        return {name: list(column) for name, column in self._columns.items()}

    def _complete(self, meta: dict[str, Any]) -> None:
        """Check the end of an answer; of one that SGLang aborts while it waits again, the rows are lost."""
        missing = int(meta.get("completion_tokens", 0)) - self._count
        if missing <= 0:
            return
        if meta["finish_reason"].get("type") != "abort":
            raise HostError(
                f"{missing} rows of an answer have no statistics: the scheduler does not run sglang-power's "
                "sampler for this model. Run 'sglang-power check'"
            )
        if not self._deltas:
            for column in self._columns.values():
                column.extend([None] * missing)
