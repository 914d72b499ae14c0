"""What a test of a backend needs: hard rows, the exact law, a G-test, closeness, and a guard against host
reads.

Owns no production code. Public, so that a backend written elsewhere can be held to the same laws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .records import RowStatistics

HOST_READS: Final = (
    "aten::_local_scalar_dense",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::_unique2",
    "aten::bincount",
)
"""Operations whose result, or the size of it, depends on values: on CUDA each waits for the stream."""


class NoHostReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises when an operation inside would make a CUDA stream wait for the host."""

    def __init__(self) -> None:
        """Watch from `with` on."""
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the operation unless it reads values on the host, boolean-mask indexing included."""
        name = func._schema.name
        if name in HOST_READS or (name.startswith("aten::index") and _has_mask(args)):
            raise AssertionError(f"{name} reads values on the host")
        return func(*args, **(kwargs or {}))


def hard_rows(vocab: int, seed: int = 0) -> torch.Tensor:
    """Return `[10, vocab]` float32 logits: ordinary, flat, peaked, tied, masked, one token, NaN, all -inf,
    +inf, far.

    In a vocabulary of one or two tokens some of them coincide.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = 3.0 * torch.randn(10, vocab, generator=generator)
    rows[1] = -7.25
    rows[2, vocab // 3] = 40.0
    rows[3] = rows[3].round()
    rows[4, 1::2] = -torch.inf
    rows[5] = -torch.inf
    rows[5, vocab // 2] = -3.0
    rows[6, vocab - 1] = torch.nan
    rows[7] = -torch.inf
    rows[8, 0] = torch.inf
    rows[9] += 1000.0
    return rows


def exact_law(
    row: torch.Tensor, kappa: float, keep_min: float | None = None, keep_max: float | None = None
) -> torch.Tensor:
    """Return `[vocab]` float64 probabilities of a row's truncated, tempered law, by definition."""
    x = row.double()
    weight = torch.exp(kappa * (x - x.max()))
    if keep_min is not None:
        weight = weight * (x >= keep_min)
    if keep_max is not None:
        weight = weight * (x <= keep_max)
    return weight / weight.sum()


def g_test(ids: torch.Tensor, law: torch.Tensor, least_expected: float = 5.0) -> float:
    """Return the p-value of the G-test that `ids` were drawn from `law`.

    Cells expected below `least_expected` times are pooled; an id of probability 0, or no id, gives 0.

    Args:
        ids: `[draws]` int64.
        law: `[vocab]` float64, sums to 1.
        least_expected: smallest expectation of a cell of its own.
    """
    from scipy.stats import power_divergence

    if bool((ids < 0).any()) or bool((law[ids] == 0).any()):
        return 0.0
    counts = torch.bincount(ids, minlength=law.numel()).double()
    expected = law * ids.numel()
    own = expected >= least_expected
    observed = torch.cat([counts[own], counts[~own].sum()[None]])
    wanted = torch.cat([expected[own], expected[~own].sum()[None]])
    present = wanted > 0
    result = power_divergence(observed[present].numpy(), wanted[present].numpy(), lambda_="log-likelihood")
    return float(result.pvalue)


def assert_statistics_close(actual: RowStatistics, expected: RowStatistics, tolerance: float) -> None:
    """Raise unless all figures agree to `tolerance` (absolute below 1, relative above), NaN and infinities
    exactly.

    Ids must agree exactly; `expected` may be float64.
    """
    for field in fields(RowStatistics):
        got, want = getattr(actual, field.name), getattr(expected, field.name)
        if field.name == "top2_ids":
            assert got.tolist() == want.tolist(), f"{field.name}: {got.tolist()} instead of {want.tolist()}"
            continue
        assert got.dtype == torch.float32, f"{field.name} is {got.dtype}"
        same = torch.isclose(got, want.float(), atol=tolerance, rtol=tolerance, equal_nan=True)
        assert bool(same.all()), f"{field.name}: {got.tolist()} instead of {want.tolist()}"


def _has_mask(args: Sequence[Any]) -> bool:
    indices = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
    return any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in indices)
