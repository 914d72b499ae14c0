"""Blocks of rows in preallocated buffers, and the chunks inside a row: the data layout of the torch backend.

Owns memory and layout, not statistics. Page faults on large temporaries, not arithmetic, are what makes the
naive form slow on a CPU: a block holds one row of a large vocabulary, or many of a small one, and stays in a
core's cache. On CUDA one block holds the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import e, log2
from typing import Final

import torch

CHUNK: Final = 512
"""Tokens per chunk of the two-level searches (top-2, inverse CDF)."""
BLOCK_ELEMENTS: Final = 1 << 17
"""Logits per block on a CPU; three float32 buffers of it stay in a core's cache."""
LOG2_E: Final = log2(e)
LARGEST: Final = torch.finfo(torch.float32).max
NOTHING_KEPT: Final = -1e38
"""Below any maximum of logits that can be drawn; twice `LARGEST` takes any finite logit below it."""


@dataclass(frozen=True)
class Block:
    """Some rows of the batch and three float32 buffers `[rows, width]` to sweep them in.

    Attributes:
        rows: which rows of the batch.
        logits: `[rows, vocab]`, as given.
        shifted: the logits minus the row's maximum, -inf beyond the vocabulary.
        weights: exponentials, 0 beyond the vocabulary.
        scratch: anything.
    """

    rows: slice
    logits: torch.Tensor
    shifted: torch.Tensor
    weights: torch.Tensor
    scratch: torch.Tensor


def blocks(logits: torch.Tensor) -> Iterator[Block]:
    """Yield the rows in blocks that share one set of buffers."""
    batch, vocab = logits.shape
    width = chunk_count(vocab) * CHUNK if vocab > CHUNK else vocab
    height = block_height(batch, width, logits.device)
    buffers = [logits.new_empty((height, width), dtype=torch.float32) for _ in range(3)]
    for start in range(0, batch, height):
        stop = min(start + height, batch)
        shifted, weights, scratch = (buffer[: stop - start] for buffer in buffers)
        yield Block(slice(start, stop), logits[start:stop], shifted, weights, scratch)


def block_height(batch: int, width: int, device: torch.device) -> int:
    """Rows per block: what fits the cache of a CPU, everything elsewhere."""
    return max(1, min(batch, BLOCK_ELEMENTS // width) if device.type == "cpu" else batch)


def load_rows(block: Block, chunk_max: torch.Tensor) -> torch.Tensor:
    """Copy the logits, padded with -inf, to the shifted buffer; write the chunk maxima, return the rows'."""
    vocab = block.logits.shape[1]
    block.shifted[:, :vocab].copy_(block.logits)
    block.shifted[:, vocab:].fill_(-torch.inf)
    torch.amax(chunks(block.shifted), dim=-1, out=chunk_max)
    return chunk_max.amax(dim=-1)


def keep_only(
    block: Block,
    z: torch.Tensor,
    mask: torch.Tensor,
    keep_min: torch.Tensor | None,
    keep_max: torch.Tensor | None,
) -> torch.Tensor:
    """Push what is outside of the bounds below any logit in `z`; return the maxima, NaN if nothing is kept.

    By arithmetic on 0 and 1 in the float buffer `mask`: torch's masked fills are ten times slower on a CPU. A
    NaN logit stays NaN, so that a broken row stays broken; a NaN bound cuts nothing.
    """
    vocab = block.logits.shape[1]
    for compare, bound in ((torch.lt, keep_min), (torch.gt, keep_max)):
        if bound is not None:
            compare(block.logits, bound[block.rows, None], out=mask[:, :vocab])
            z[:, :vocab].sub_(mask[:, :vocab], alpha=LARGEST).sub_(mask[:, :vocab], alpha=LARGEST)
    peak = z.amax(dim=-1)
    return peak.masked_fill(peak < NOTHING_KEPT, torch.nan)


def temper(z: torch.Tensor, kappa: torch.Tensor, weights: torch.Tensor) -> None:
    """Write `exp(kappa * z)` to `weights`; `exp2` is four times faster than `exp` in torch's CPU kernels."""
    torch.mul(z, (kappa * LOG2_E)[:, None], out=weights)
    torch.exp2(weights, out=weights)


def chunks(buffer: torch.Tensor) -> torch.Tensor:
    """View `[rows, width]` as `[rows, chunks, tokens]`."""
    return buffer.view(buffer.shape[0], chunk_count(buffer.shape[1]), -1)


def chunk_count(vocab: int) -> int:
    """Chunks of a row; the last one is padded."""
    return -(-vocab // CHUNK)


def chunk_logits(logits: torch.Tensor, chunk: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`[batch, CHUNK]` ids of one chunk per row, and their logits in float32; -inf beyond the vocabulary.

    A vocabulary smaller than that is its own chunk.
    """
    vocab = logits.shape[1]
    ids = chunk * CHUNK + torch.arange(min(CHUNK, vocab), device=logits.device)
    x = logits.gather(1, ids.clamp_max(vocab - 1)).float()
    return ids, x.masked_fill(ids >= vocab, -torch.inf)


def is_kept(x: torch.Tensor, keep_min: torch.Tensor | None, keep_max: torch.Tensor | None) -> torch.Tensor:
    """Whether the logits `x` can be drawn: not -inf and within the bounds, which broadcast against it."""
    kept = ~torch.isneginf(x)
    if keep_min is not None:
        kept &= ~(x < keep_min)
    if keep_max is not None:
        kept &= ~(x > keep_max)
    return kept
