"""Bytes that the Triton kernels move, counted from their launches.

Owns the count; where there is a GPU, a profiler can check it. The other backends are chains of torch
operations and are not counted.
"""

from __future__ import annotations

from .workloads import POWER_ROW, SAMPLING, STATISTICS, TRUNCATED_ROW, Contender

FLOAT, INT, LONG = 4, 4, 8
OUTPUT_BYTES = 7 * FLOAT + 2 * FLOAT + 2 * LONG
"""Per row of `RowStatistics`."""


def byte_passes(candidate: Contender, batch: int, vocab: int) -> float | None:
    """Return bytes read and written over the bytes of float32 logits; None where they are not counted."""
    counts = {
        SAMPLING: (_sampling,),
        STATISTICS: (_statistics,),
        POWER_ROW: (_sampling, _statistics),
        TRUNCATED_ROW: (_sampling, _statistics),
    }
    if candidate.backend != "triton" or candidate.operation not in counts:
        return None
    return sum(count(batch, vocab) for count in counts[candidate.operation]) / (FLOAT * vocab)


def _statistics(batch: int, vocab: int) -> int:
    """Per row: the logits, the partial sums written and read, the sampled token and what describes it."""
    from ..triton_backend import tiling
    from ..triton_statistics import PARTIALS

    _, tiles = tiling(batch, vocab)
    partial = tiles * (PARTIALS * FLOAT + 2 * INT)
    return FLOAT * vocab + 2 * partial + LONG + FLOAT + OUTPUT_BYTES


def _sampling(batch: int, vocab: int) -> int:
    """Per row: the logits, the partial sums written and read, one tile again, the uniform and the token."""
    from ..triton_backend import tiling
    from ..triton_sampling import PARTIALS

    block, tiles = tiling(batch, vocab)
    return FLOAT * vocab + 2 * tiles * PARTIALS * FLOAT + FLOAT * block + 2 * LONG
