"""Greedy rows of a batch: their argmax, beside the draws of all other rows.

Owns how a batch is divided; the draws themselves are a backend's. The number of greedy rows is known from
their tensor's shape, so nothing is read on the host. On a CPU the other rows are gathered and drawn alone,
since a draw costs ten times as much as the copy; on CUDA, where a draw is one pass over the logits, all rows
are drawn and the greedy ones overwritten, since gathering would cost two.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from .checks import NO_TOKEN
from .torch_blocks import CHUNK, chunk_logits


class Draw(Protocol):
    """A backend's `sample_rows`."""

    def __call__(
        self,
        logits: torch.Tensor,
        *,
        kappa: torch.Tensor,
        uniforms: torch.Tensor,
        keep_min: torch.Tensor | None,
        keep_max: torch.Tensor | None,
    ) -> torch.Tensor:
        """Draw one token per row; see `sglang_power_kernels.sample_rows`."""
        ...


class Law(NamedTuple):
    """What a draw depends on beside the logits, `[batch]` each; see `sglang_power_kernels.sample_rows`."""

    kappa: torch.Tensor
    uniforms: torch.Tensor
    keep_min: torch.Tensor | None
    keep_max: torch.Tensor | None

    def of(self, rows: torch.Tensor) -> Law:
        """Return the law of some rows."""
        kappa, uniforms, keep_min, keep_max = (
            None if values is None else values.index_select(0, rows) for values in self
        )
        assert kappa is not None
        assert uniforms is not None
        return Law(kappa, uniforms, keep_min, keep_max)


def drawn(draw: Draw, logits: torch.Tensor, law: Law) -> torch.Tensor:
    """Draw one token for every row."""
    return draw(logits, kappa=law.kappa, uniforms=law.uniforms, keep_min=law.keep_min, keep_max=law.keep_max)


def drawn_beside_greedy(draw: Draw, logits: torch.Tensor, law: Law, greedy: torch.Tensor) -> torch.Tensor:
    """Draw one token for every row but the greedy ones, which take their most likely token."""
    if len(greedy) == 0:
        return drawn(draw, logits, law)
    if len(greedy) == logits.shape[0]:
        return most_likely(logits)
    divided = gathered if logits.device.type == "cpu" else overwritten
    return divided(draw, logits, law, greedy)


def overwritten(draw: Draw, logits: torch.Tensor, law: Law, greedy: torch.Tensor) -> torch.Tensor:
    """Draw all rows and put the most likely token in the place of the greedy rows' draws."""
    return drawn(draw, logits, law).index_copy(0, greedy, most_likely(logits).index_select(0, greedy))


def gathered(draw: Draw, logits: torch.Tensor, law: Law, greedy: torch.Tensor) -> torch.Tensor:
    """Draw copies of the other rows alone."""
    batch = logits.shape[0]
    is_greedy = greedy.new_zeros((batch,)).index_fill_(0, greedy, 1)
    others = is_greedy.argsort(stable=True)[: batch - len(greedy)]
    ids = torch.empty_like(is_greedy)
    ids.index_copy_(0, greedy, most_likely(logits.index_select(0, greedy)))
    return ids.index_copy_(0, others, drawn(draw, logits.index_select(0, others), law.of(others)))


def most_likely(logits: torch.Tensor) -> torch.Tensor:
    """Return the `[batch]` int64 ids of the largest logits, the lowest of equal ones.

    `NO_TOKEN` in a row without a law.
    """
    maxima = _chunk_maxima(logits)
    peak, chunk = maxima.max(dim=-1)
    ids, x = chunk_logits(logits, chunk[:, None])
    picked = ids.gather(1, x.argmax(dim=-1, keepdim=True)).squeeze(1)
    return picked.masked_fill(~torch.isfinite(peak), NO_TOKEN)


def _chunk_maxima(logits: torch.Tensor) -> torch.Tensor:
    """`[batch, chunks]` largest logits; maxima without indices are ten times faster on a CPU."""
    vocab = logits.shape[1]
    if vocab <= CHUNK:
        return logits.amax(dim=-1, keepdim=True)
    whole = vocab - vocab % CHUNK
    maxima = logits[:, :whole].view(len(logits), whole // CHUNK, CHUNK).amax(dim=-1)
    if whole == vocab:
        return maxima
    return torch.cat([maxima, logits[:, whole:].amax(dim=-1, keepdim=True)], dim=1)
