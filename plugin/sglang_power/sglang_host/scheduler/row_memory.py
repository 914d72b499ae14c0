"""What policies remember of a request, and what rows see of the token before. Scheduler process.

Memory is one number per request, on the device: it lives on the request and not with the batch's rows, so
that filtering, merging and retraction cannot lose it, and is read and written without a synchronisation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch

from sglang_power.sglang_host.scheduler.penalties import penalise, table_of

NOTHING = -1
"""Memory of a request whose policy has not said anything yet."""

_NEWLINES = ("\n", "Ċ", "<0x0A>", "▁\n")
"""How vocabularies write a newline: plain, byte-level BPE, byte fallback."""

_ENDS_LINE = re.compile(r"\n[ \t]*$")

_BLANKS = re.compile(r"(?:[ \tĠĉ▁]|<0x20>|<0x09>)+")
"""How vocabularies write pieces of spaces and tabs alone, in the same three ways."""

_INSIDE, _BEGINS, _KEEPS = 0, 1, -1
"""What a token makes of the place behind it: inside of a line, where a line begins, or what it was before."""


class RowMemory:
    """One request's memory: an int64 tensor of shape [1] on the device, made when first used.

    Args:
        start: what it holds at first.
    """

    def __init__(self, start: int = NOTHING) -> None:
        self._start = start
        self._value: torch.Tensor | None = None

    def read(self, device: torch.device) -> torch.Tensor:
        """[1] int64."""
        if self._value is None:
            self._value = torch.full((1,), self._start, dtype=torch.int64, device=device)
        return self._value

    def write(self, value: torch.Tensor) -> None:
        """Replace the value, [1] int64."""
        self._value = value


def read_memories(memories: Sequence[RowMemory | None], device: torch.device) -> torch.Tensor:
    """[rows, 1] int64; NOTHING for rows without memory."""
    return torch.stack([(memory or RowMemory()).read(device) for memory in memories])


def write_memories(memories: Sequence[RowMemory | None], values: torch.Tensor) -> None:
    """Hand [rows, 1] values back to the rows that have memory."""
    for memory, value in zip(memories, values.unbind(0), strict=True):
        if memory is not None:
            memory.write(value)


@lru_cache(maxsize=4)
def _line_roles(tokenizer: Any) -> list[int]:
    """What every token of the vocabulary makes of the place behind it."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    roles = [_INSIDE] * (max(vocabulary.values()) + 1)
    for piece, token in vocabulary.items():
        if any(newline in piece for newline in _NEWLINES):
            roles[token] = _BEGINS if _ENDS_LINE.search(tokenizer.decode([token])) else _INSIDE
        elif _BLANKS.fullmatch(piece):  # by its spelling: some decoders strip a leading blank
            roles[token] = _KEEPS
    return roles


@lru_cache(maxsize=4)
def _line_roles_on(tokenizer: Any, device: torch.device) -> torch.Tensor:
    """[vocab] int64 on a device."""
    return torch.tensor(_line_roles(tokenizer), device=device)


def begins_line(ids: Iterable[int], tokenizer: Any) -> bool:
    """Return whether a line begins behind a sequence, blanks after the newline aside.

    Args:
        ids: the sequence from its end to its beginning; read as far as it matters.
        tokenizer: of the served model. Ids that it lacks are inside of a line.
    """
    roles = _line_roles(tokenizer)
    known = (roles[token] if 0 <= token < len(roles) else _INSIDE for token in ids)
    return next((role for role in known if role != _KEEPS), _INSIDE) == _BEGINS


def line_begins(previous: torch.Tensor, before: torch.Tensor, tokenizer: Any) -> torch.Tensor:
    """Return [rows, 1] int64, 1 where a line begins behind the token before, 0 elsewhere.

    The same token twice leaves the same state, so rows may be computed more than once.

    Args:
        previous: [rows] ids of the tokens before.
        before: [rows, 1] int64, the state in front of those tokens, which tokens of blanks leave as it is.
        tokenizer: of the served model. Ids that it lacks are inside of a line.
    """
    roles = _line_roles_on(tokenizer, previous.device)
    known = previous.clamp(0, len(roles) - 1)
    role = roles[known].masked_fill(known != previous, _INSIDE)[:, None]
    return torch.where(role == _KEEPS, before, role)


def sample(original: Callable[..., Any], runner: Any, logits_output: Any, forward_batch: Any) -> Any:
    """Around ModelRunner.sample: hands the sampler the tokens that its rows follow, and the model's logits.

    On the device, so under overlap scheduling too they are the tokens really drawn. Logits as the model gave
    them, before SGLang's penalties, are kept for reported rows that have some. Those of children with
    penalties become those of their base law, before SGLang adds its masks and biases.
    """
    info = forward_batch.sampling_info
    reported = getattr(info, "power_reported", None)
    if reported is not None:
        info.power_unpenalised = reported.unpenalised(logits_output.next_token_logits)
    block = getattr(info, "power_rows", None)
    if block is not None and "ends_line" in block.needs:
        info.power_previous = _previous_ids(forward_batch)
    if block is not None and block.penalised:
        logits = logits_output.next_token_logits
        table = table_of(logits)
        previous, positions = _previous_ids(forward_batch), _positions(forward_batch)
        penalise(logits, block.counted_in(table), table, previous, positions)
    return original(runner, logits_output, forward_batch)


def _previous_ids(forward_batch: Any) -> torch.Tensor:
    """[batch] the last input token of every row."""
    ids: torch.Tensor = forward_batch.input_ids
    if forward_batch.forward_mode.is_decode():
        return ids
    return ids.index_select(0, forward_batch.extend_seq_lens.long().cumsum(0) - 1)


def _positions(forward_batch: Any) -> torch.Tensor:
    """[batch] absolute position of the last input token of every row, as SGLang hands it to its sampler."""
    positions: torch.Tensor = forward_batch.positions
    return positions if forward_batch.forward_mode.is_decode() else forward_batch.seq_lens - 1
