"""What is timed: the copy, the stock sampler, and the row functions of each backend.

Owns the inputs and the calls; every call takes the rows as argument, so that the inputs can rotate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch

from .. import row_statistics, sample_rows, truncation_bounds
from ..ops import STATISTICS as WITH_STATISTICS
from ..ops import TRUNCATION as WITH_TRUNCATION
from .stock import stock, stock_logprobs

LOGIT_BYTES: Final = 4
"""Float32, as SGLang hands them to its sampler."""
KAPPA: Final = 4.0
TOP_P: Final = 0.95
BOUND_BELOW_PEAK: Final = 2.0
NAIVE_LIMIT: Final = 1 << 22
"""Logits beyond which the naive reference is not timed."""
POOL_BYTES: Final = 128 << 20
"""Logits that rotate: twice what the last-level cache of an H200 or of a server's CPU holds."""
POOL_LIMIT: Final = 64
"""Most sets of rows that rotate. Logits below 2 MB per set may so stay in a cache, as they do in serving."""


class Contender(NamedTuple):
    """What is timed, and by which backend."""

    operation: str
    backend: str


COPY: Final = Contender("copy", "torch")
STOCK: Final = Contender("stock", "sglang")
STOCK_LOGPROBS: Final = Contender("stock + logprobs + top-2", "sglang")
SAMPLING: Final = "sampling"
GREEDY: Final = "greedy sampling"
STATISTICS: Final = "statistics"
POWER_ROW: Final = "sampling + statistics"
TRUNCATED_ROW: Final = "sampling + statistics, truncated"
TOP_P_BOUND: Final = "top-p bound"


@dataclass(frozen=True)
class BenchmarkRows:
    """The inputs of one call.

    Attributes:
        logits: `[batch, vocab]` float32.
        ids: `[batch]` int64, a token per row.
        bound: `[batch]` float32, a lower bound of the kept set.
        kappa: `[batch]` float32.
        temperatures: `[batch, 1]` float32, 1 / kappa.
        uniforms: `[batch]` float64.
        greedy: `[batch]` int64, all rows.
        top_p: `[batch]` float32.
    """

    logits: torch.Tensor
    ids: torch.Tensor
    bound: torch.Tensor
    kappa: torch.Tensor
    temperatures: torch.Tensor
    uniforms: torch.Tensor
    greedy: torch.Tensor
    top_p: torch.Tensor


Call = Callable[[BenchmarkRows], object]


def rows_to_rotate(device: torch.device, batch: int, vocab: int) -> list[BenchmarkRows]:
    """Return as many sets of rows as no cache holds together, at most `POOL_LIMIT`; the same in every run."""
    generator = torch.Generator(device).manual_seed(0)
    sets = min(POOL_LIMIT, -(-POOL_BYTES // (LOGIT_BYTES * batch * vocab)))
    pool = []
    for _ in range(sets):
        logits = 3.0 * torch.randn(batch, vocab, device=device, generator=generator)
        peak, ids = logits.max(dim=-1)
        pool.append(
            BenchmarkRows(
                logits=logits,
                ids=ids,
                bound=peak - BOUND_BELOW_PEAK,
                kappa=torch.full((batch,), KAPPA, device=device),
                temperatures=torch.full((batch, 1), 1 / KAPPA, device=device),
                uniforms=torch.rand(batch, dtype=torch.float64, device=device, generator=generator),
                greedy=torch.arange(batch, device=device),
                top_p=torch.full((batch,), TOP_P, device=device),
            )
        )
    return pool


def candidates(like: torch.Tensor, backends: Sequence[str]) -> dict[Contender, Call]:
    """The calls to time on rows shaped like `like`; the naive reference only up to `NAIVE_LIMIT` logits."""
    copy, buffer = torch.empty_like(like), torch.empty_like(like)
    calls: dict[Contender, Call] = {
        COPY: lambda rows: copy.copy_(rows.logits),
        STOCK: lambda rows: stock(rows.logits, buffer, rows.temperatures),
        STOCK_LOGPROBS: lambda rows: stock_logprobs(rows.logits, buffer, rows.temperatures),
    }
    for backend in backends:
        if backend != "reference" or like.numel() <= NAIVE_LIMIT:
            calls |= backend_calls(backend)
    return calls


def backend_calls(backend: str) -> dict[Contender, Call]:
    """The calls of one backend; FlashInfer's samples are paired with the statistics of "auto"."""
    described_by = backend if backend in WITH_STATISTICS else "auto"

    def draw(
        rows: BenchmarkRows, keep_min: torch.Tensor | None = None, greedy: torch.Tensor | None = None
    ) -> torch.Tensor:
        return sample_rows(
            rows.logits,
            kappa=rows.kappa,
            uniforms=rows.uniforms,
            keep_min=keep_min,
            greedy=greedy,
            backend=backend,
            validate=False,
        )

    def describe(rows: BenchmarkRows, ids: torch.Tensor, keep_min: torch.Tensor | None = None) -> object:
        return row_statistics(
            rows.logits, ids, kappa=rows.kappa, keep_min=keep_min, backend=described_by, validate=False
        )

    def bound(rows: BenchmarkRows) -> torch.Tensor:
        return truncation_bounds(
            rows.logits, kappa=rows.kappa, top_p=rows.top_p, backend=backend, validate=False
        )

    calls: dict[Contender, Call] = {
        Contender(SAMPLING, backend): draw,
        Contender(GREEDY, backend): lambda rows: draw(rows, greedy=rows.greedy),
        Contender(POWER_ROW, backend): lambda rows: describe(rows, draw(rows)),
        Contender(TRUNCATED_ROW, backend): lambda rows: describe(rows, draw(rows, rows.bound), rows.bound),
    }
    if backend in WITH_STATISTICS:
        calls[Contender(STATISTICS, backend)] = lambda rows: describe(rows, rows.ids)
    if backend in WITH_TRUNCATION:
        calls[Contender(TOP_P_BOUND, backend)] = bound
    return calls
