"""Penalised rows: how often each token is in the answer in front of a row, and what that does to its logits.

SGLang's penalizers count the last token that the host knows, which under overlap scheduling is a step behind
the row, and the prompt's last one at the first row (`cumulate_penalty_output_tokens`, 0.5.23). What they make
of a row depends on the schedule, so no law of whole answers can be built on it. So children carry neutral
penalties of SGLang's and their own in ChildParams, and are counted here: by the ids that the forward pass
read, which are on the device before it samples, so nothing waits for the host.

Counts are in one table per device, a slot for each row; rows are made again behind chunks and retractions,
and then take a slot that begins with what the host knows of the answer. Scheduler process.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sglang_power.algorithms.penalties import Penalties
from sglang_power.sglang_host.scheduler.row_tensors import moved


class CountedRow:
    """The tokens of one row's answer, counted in a slot of a table from its first step on.

    Args:
        penalties: of the row.
        answer: its tokens when the row was made: those that its prompt ends with, and those generated.
        last: absolute position of the last of them, or of the prompt's last token.
    """

    def __init__(self, penalties: Penalties, answer: Sequence[int], last: int) -> None:
        self.penalties, self.answer, self.last = penalties, answer, last
        self.slot: int | None = None


@dataclass(frozen=True)
class CountedRows:
    """The penalised rows of one composition of a batch, on a device.

    Args:
        batch: [penalised] int64, positions in the batch.
        slots: [penalised] int64, in the table.
        frequency, presence: [penalised, 1] float32, nats.
        repetition: [penalised, 1] float32; None where no row has any.
    """

    batch: torch.Tensor
    slots: torch.Tensor
    frequency: torch.Tensor
    presence: torch.Tensor
    repetition: torch.Tensor | None


class CountTable:
    """Counts of tokens, a slot per row; grows with the largest number of penalised rows that were at work.

    Args:
        vocab: tokens of the vocabulary: a slot takes 4 bytes for each of them.
        device: where the table is.
    """

    def __init__(self, vocab: int, device: torch.device) -> None:
        self._device = device
        self._counts = torch.zeros((0, vocab), dtype=torch.int32, device=device)
        self._last = torch.zeros(0, dtype=torch.int64, device=device)
        self._free: deque[int] = deque()

    @property
    def slots(self) -> int:
        """Return how many slots the table has."""
        return len(self._counts)

    def place(self, indices: Sequence[int], rows: Sequence[CountedRow]) -> CountedRows:
        """Return the rows of a batch; those without a slot get one, which begins with their answers.

        Args:
            indices: where they are in the batch.
            rows: [penalised]; a slot is free again when its row is gone.
        """
        self._begin([row for row in rows if row.slot is None])
        laws = [row.penalties for row in rows]
        scaled = any(law.repetition != 1.0 for law in laws)
        return CountedRows(
            batch=self._moved(indices),
            slots=self._moved([row.slot or 0 for row in rows]),
            frequency=self._column([law.frequency for law in laws]),
            presence=self._column([law.presence for law in laws]),
            repetition=self._column([law.repetition for law in laws]) if scaled else None,
        )

    def step(self, slots: torch.Tensor, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Count the tokens that are new, and return [penalised, vocab] int32 counts in front of the rows.

        Args:
            slots: [penalised] int64, no two the same.
            tokens: [penalised] int64, the last token in front of each row.
            positions: [penalised] int64, its absolute position. A row may come twice: it counts once.
        """
        last = self._last[slots]
        known = tokens.long().clamp(0, self._counts.shape[1] - 1)
        self._counts.index_put_((slots, known), (positions == last + 1).int(), accumulate=True)
        self._last[slots] = torch.where(positions == last + 1, positions, last)
        return self._counts.index_select(0, slots)

    def unknown(self, slots: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return [penalised, 1] bool, which rows are not right behind the tokens that were counted.

        Rows of the middle chunks of a prompt are not, and nobody reads those; no other row ever is.
        """
        return (self._last[slots] != positions)[:, None]

    def _begin(self, rows: Sequence[CountedRow]) -> None:
        """Give rows a slot each, with the counts of their answers."""
        if not rows:
            return
        self._grow(len(rows) - len(self._free))
        for row in rows:
            row.slot = self._free.popleft()
            weakref.finalize(row, self._free.append, row.slot).atexit = False
        slots = self._moved([row.slot or 0 for row in rows])
        self._counts.index_fill_(0, slots, 0)
        self._last[slots] = self._moved([row.last for row in rows])
        pairs = [(row.slot or 0, token) for row in rows for token in row.answer]
        if pairs:
            where, tokens = (self._moved(column) for column in zip(*pairs, strict=True))
            ones = torch.ones_like(tokens, dtype=torch.int32)
            self._counts.index_put_((where, tokens), ones, accumulate=True)

    def _grow(self, missing: int) -> None:
        if missing <= 0:
            return
        old, vocab = self._counts.shape
        more = max(missing, old)
        self._counts = torch.cat([self._counts, self._counts.new_zeros((more, vocab))])
        self._last = torch.cat([self._last, self._last.new_zeros(more)])
        self._free.extend(range(old, old + more))

    def _moved(self, values: Sequence[int]) -> torch.Tensor:
        return moved(torch.tensor(values, dtype=torch.int64), self._device)

    def _column(self, values: Sequence[float]) -> torch.Tensor:
        return moved(torch.tensor(values, dtype=torch.float32)[:, None], self._device)


_tables: dict[tuple[torch.device, int], CountTable] = {}


def table_of(logits: torch.Tensor) -> CountTable:
    """Return this process's table for rows of logits, [batch, vocab]; made when first used."""
    key = logits.device, logits.shape[1]
    if key not in _tables:
        _tables[key] = CountTable(logits.shape[1], logits.device)
    return _tables[key]


def penalise(
    logits: torch.Tensor,
    rows: CountedRows,
    table: CountTable,
    tokens: torch.Tensor,
    positions: torch.Tensor,
) -> None:
    """Make the model's logits those of the base law, in place, for the penalised rows of a batch.

    A row whose answer is not known becomes NaN, which ends its request; see `CountTable.unknown`.

    Args:
        logits: [batch, vocab] as the model gave them: what masks and biases do to them comes behind.
        rows: which are penalised, and how.
        table: where their tokens are counted.
        tokens: [batch] the last token in front of each row.
        positions: [batch] its absolute position.
    """
    where = positions.index_select(0, rows.batch)
    counts = table.step(rows.slots, tokens.index_select(0, rows.batch), where)
    penalised = penalised_logits(logits.index_select(0, rows.batch), counts, rows)
    penalised.masked_fill_(table.unknown(rows.slots, where), torch.nan)
    logits.index_copy_(0, rows.batch, penalised.to(logits.dtype))


def penalised_logits(logits: torch.Tensor, counts: torch.Tensor, rows: CountedRows) -> torch.Tensor:
    """Return [penalised, vocab] float32 logits of the base law; `Penalties.act` is the same on one row.

    Args:
        logits: [penalised, vocab] the model's.
        counts: [penalised, vocab] int32.
        rows: their penalties.
    """
    seen = counts > 0
    shifted = logits.float() - rows.frequency * counts - rows.presence * seen
    if rows.repetition is None:
        return shifted
    scaled = torch.where(shifted < 0, shifted * rows.repetition, shifted / rows.repetition)
    return torch.where(seen, scaled, shifted)
