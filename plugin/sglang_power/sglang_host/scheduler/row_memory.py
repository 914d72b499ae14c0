"""What policies remember of a request, and what they see of the token before. Scheduler process.

Memory is one number per request, on the device: it lives on the request and not with the batch's rows, so
that filtering, merging and retraction cannot lose it, and is read and written without a synchronisation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch

NOTHING = -1
"""Memory of a request whose policy has not said anything yet."""

_NEWLINES = ("\n", "Ċ", "<0x0A>", "▁\n")
"""How vocabularies write a newline: plain, byte-level BPE, byte fallback."""

_ENDS_LINE = re.compile(r"\n[ \t]*$")


class RowMemory:
    """One request's memory: an int64 tensor of shape [1] on the device, made when first used."""

    def __init__(self) -> None:
        self._value: torch.Tensor | None = None

    def read(self, device: torch.device) -> torch.Tensor:
        """[1] int64."""
        if self._value is None:
            self._value = torch.full((1,), NOTHING, dtype=torch.int64, device=device)
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
def line_ends(tokenizer: Any, device: torch.device) -> torch.Tensor:
    """[vocab] bool: whether a token's text ends with a newline, blanks after it aside."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    table = torch.zeros(max(vocabulary.values()) + 1, dtype=torch.bool)
    for piece, token in vocabulary.items():
        if any(newline in piece for newline in _NEWLINES):
            table[token] = _ENDS_LINE.search(tokenizer.decode([token])) is not None
    return table.to(device)


def follows_line_end(previous: torch.Tensor, tokenizer: Any) -> torch.Tensor:
    """[rows, 1] bool for [rows] ids of the tokens before; ids that the tokenizer lacks end no line."""
    table = line_ends(tokenizer, previous.device)
    known = previous.clamp(0, len(table) - 1)
    return (table[known] & (known == previous))[:, None]


def sample(original: Callable[..., Any], runner: Any, logits_output: Any, forward_batch: Any) -> Any:
    """Around ModelRunner.sample: the sampler does not see the tokens that its rows follow.

    On the device, so under overlap scheduling too they are the tokens really drawn.
    """
    info = forward_batch.sampling_info
    block = getattr(info, "power_rows", None)
    if block is not None and "ends_line" in block.needs:
        info.power_previous = _previous_ids(forward_batch)
    return original(runner, logits_output, forward_batch)


def _previous_ids(forward_batch: Any) -> torch.Tensor:
    """[batch] the last input token of every row."""
    ids: torch.Tensor = forward_batch.input_ids
    if forward_batch.forward_mode.is_decode():
        return ids
    return ids.index_select(0, forward_batch.extend_seq_lens.long().cumsum(0) - 1)
