"""Triton form of the row functions: allocates, launches, and names the results.

Owns grids, tile sizes and buffers; the device code is in `triton_statistics` and `triton_sampling`.
Statistics read the logits once; sampling reads them once, and one tile of each row again. Runs on CUDA
tensors, or on CPU tensors under `TRITON_INTERPRET=1`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch

from .records import RowStatistics
from .triton_sampling import PARTIALS as MASS_PARTIALS
from .triton_sampling import pick_token, tile_mass
from .triton_statistics import PARTIALS, merge_statistics, tile_statistics

LARGE_TILE: Final = 4096
SMALL_TILE: Final = 1024
PROGRAMS: Final = 264
"""Two per multiprocessor of an H200; a batch with fewer large tiles than that gets small ones."""
TILE_WARPS: Final = 8
MERGE_WARPS: Final = 4
STATISTICS: Final = 7


@dataclass(frozen=True)
class Launch:
    """The arguments that every kernel takes: the rows, their tiling, the law."""

    rows: tuple[Any, ...]
    kappa: torch.Tensor
    bounds: tuple[torch.Tensor, torch.Tensor]
    constants: dict[str, Any]
    tiles: int
    block: int

    @property
    def merged_tiles(self) -> int:
        """Tiles per row, rounded up to a power of two."""
        return _power_of_two(self.tiles)


def row_statistics(
    logits: torch.Tensor,
    sampled_ids: torch.Tensor,
    *,
    kappa: torch.Tensor,
    keep_min: torch.Tensor | None,
    keep_max: torch.Tensor | None,
) -> RowStatistics:
    """Return the statistics of each row of logits and of its token, reading the logits once."""
    batch = logits.shape[0]
    plan = _plan(logits, kappa, keep_min, keep_max)
    partial = logits.new_empty((batch, plan.tiles, PARTIALS), dtype=torch.float32)
    ids = logits.new_empty((batch, plan.tiles, 2), dtype=torch.int32)
    out = logits.new_empty((STATISTICS, batch), dtype=torch.float32)
    top2_probs = logits.new_empty((batch, 2), dtype=torch.float32)
    top2_ids = logits.new_empty((batch, 2), dtype=torch.int64)
    constants = plan.constants | {"PARTIALS": PARTIALS}
    if batch > 0:
        with _launching_on(logits.device):
            tile_statistics[(batch, plan.tiles)](
                *plan.rows, plan.tiles, plan.kappa, *plan.bounds, partial, ids,
                BLOCK=plan.block, num_warps=TILE_WARPS, **constants,
            )  # fmt: skip
            merge_statistics[(batch,)](
                *plan.rows, batch, plan.tiles, sampled_ids.contiguous(), plan.kappa, *plan.bounds,
                partial, ids, out, top2_probs, top2_ids,
                TILES=plan.merged_tiles, num_warps=MERGE_WARPS, **constants,
            )  # fmt: skip
    log_p, log_q, log_z, entropy, varentropy, logit_mean, logit_std = out
    return RowStatistics(
        log_p,
        log_q,
        log_z,
        entropy,
        varentropy,
        logit_mean,
        logit_std,
        top2_ids=top2_ids,
        top2_probs=top2_probs,
    )


def sample_rows(
    logits: torch.Tensor,
    *,
    kappa: torch.Tensor,
    uniforms: torch.Tensor,
    keep_min: torch.Tensor | None,
    keep_max: torch.Tensor | None,
) -> torch.Tensor:
    """Draw one token per row by the inverse CDF in two levels, tiles and then tokens of a tile."""
    batch = logits.shape[0]
    plan = _plan(logits, kappa, keep_min, keep_max)
    partial = logits.new_empty((batch, plan.tiles, MASS_PARTIALS), dtype=torch.float32)
    ids = logits.new_empty((batch,), dtype=torch.int64)
    constants = plan.constants | {"PARTIALS": MASS_PARTIALS, "BLOCK": plan.block, "num_warps": TILE_WARPS}
    if batch > 0:
        with _launching_on(logits.device):
            tile_mass[(batch, plan.tiles)](
                *plan.rows, plan.tiles, plan.kappa, *plan.bounds, partial, **constants
            )
            pick_token[(batch,)](
                *plan.rows, plan.tiles, plan.kappa, uniforms.contiguous(), *plan.bounds, partial, ids,
                TILES=plan.merged_tiles, **constants,
            )  # fmt: skip
    return ids


def tiling(batch: int, vocab: int) -> tuple[int, int]:
    """Return tokens per tile and tiles per row: large tiles, unless they would leave the device idle."""
    busy = batch * -(-vocab // LARGE_TILE) >= PROGRAMS
    block = min(LARGE_TILE if busy else SMALL_TILE, _power_of_two(vocab))
    return block, -(-vocab // block)


def _plan(
    logits: torch.Tensor, kappa: torch.Tensor, keep_min: torch.Tensor | None, keep_max: torch.Tensor | None
) -> Launch:
    """Gather the common arguments; a bound that is None gets a stand-in that is never read."""
    batch, vocab = logits.shape
    block, tiles = tiling(batch, vocab)
    law = kappa.contiguous()
    return Launch(
        rows=(logits, logits.stride(0), logits.stride(1), vocab),
        kappa=law,
        bounds=(
            law if keep_min is None else keep_min.contiguous(),
            law if keep_max is None else keep_max.contiguous(),
        ),
        constants={"HAS_MIN": keep_min is not None, "HAS_MAX": keep_max is not None},
        tiles=tiles,
        block=block,
    )


def _launching_on(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()
