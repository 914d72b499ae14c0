"""Row statistics: every backend against the float64 reference, and the reference against the definitions.

Under `TRITON_INTERPRET=1` (started by `test_kernels_triton.py`) the same tests run against the Triton
kernels.
"""

from __future__ import annotations

import importlib
import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang_power_kernels import RowStatistics, row_statistics
from sglang_power_kernels.testing import assert_statistics_close, hard_rows

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ("triton",) if INTERPRETED else ("torch", "reference")
EXAMPLES = 15 if INTERPRETED else 120
# Around the size of a tile (Triton) or chunk (torch).
VOCABS = (1, 2, 1023, 1024, 1025) if INTERPRETED else (1, 2, 511, 512, 513)

# Numpy's warnings about NaN rows inside Triton's interpreter.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")


def expected(
    logits: torch.Tensor,
    ids: torch.Tensor,
    kappa: torch.Tensor,
    keep_min: torch.Tensor | None = None,
    keep_max: torch.Tensor | None = None,
) -> RowStatistics:
    return row_statistics(
        logits.double(), ids, kappa=kappa, keep_min=keep_min, keep_max=keep_max, backend="reference"
    )


def draws(rows: int, vocab: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and kappas for as many rows."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab, (rows,), generator=generator), torch.rand(rows, generator=generator) * 4 + 0.2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("vocab", VOCABS)
def test_hard_rows_match_the_float64_reference(backend: str, vocab: int) -> None:
    logits = hard_rows(vocab, seed=vocab)
    ids, kappa = draws(len(logits), vocab, seed=1)
    actual = row_statistics(logits, ids, kappa=kappa, backend=backend)
    assert_statistics_close(actual, expected(logits, ids, kappa), tolerance=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("vocab", [32_001, 151_936])
def test_a_large_vocabulary(backend: str, vocab: int) -> None:
    logits = hard_rows(vocab)[[0, 4]]
    ids, kappa = draws(2, vocab, seed=2)
    actual = row_statistics(logits, ids, kappa=kappa, backend=backend)
    assert_statistics_close(
        actual, expected(logits, ids, kappa), tolerance=2e-4 if backend == "reference" else 1e-5
    )


@pytest.mark.parametrize("backend", [backend for backend in BACKENDS if backend != "reference"])
def test_the_split_of_the_work_does_not_matter(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, knob = {"triton": ("triton_backend", "PROGRAMS"), "torch": ("torch_blocks", "BLOCK_ELEMENTS")}[
        backend
    ]
    monkeypatch.setattr(importlib.import_module(f"sglang_power_kernels.{module}"), knob, 0)
    logits = hard_rows(5000)
    ids, kappa = draws(10, 5000, seed=9)
    actual = row_statistics(logits, ids, kappa=kappa, backend=backend)
    assert_statistics_close(actual, expected(logits, ids, kappa), tolerance=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bounds", ["min", "max", "both", "empty", "nan"])
def test_log_q_is_renormalised_over_the_kept_set(backend: str, bounds: str) -> None:
    logits = hard_rows(700, seed=3)
    ids, kappa = draws(len(logits), 700, seed=4)
    middle = logits.nan_to_num(0.0, 0.0, 0.0).mean(dim=-1)
    low = {"min": middle, "both": middle - 2, "empty": middle + 1, "nan": torch.full_like(middle, torch.nan)}
    high = {"max": middle - 4, "both": middle + 1, "empty": middle - 1}
    keep_min, keep_max = low.get(bounds), high.get(bounds)
    actual = row_statistics(logits, ids, kappa=kappa, keep_min=keep_min, keep_max=keep_max, backend=backend)
    assert_statistics_close(actual, expected(logits, ids, kappa, keep_min, keep_max), tolerance=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_kept_set_far_below_the_maximum_does_not_underflow(backend: str) -> None:
    logits = torch.tensor([[90.0, -60.0, -61.0]])
    bound = torch.tensor([0.0])
    actual = row_statistics(logits, torch.tensor([1]), kappa=4.0, keep_max=bound, backend=backend)
    assert actual.log_q.item() == pytest.approx(-math.log1p(math.exp(-4.0)), abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_read_exactly(backend: str, dtype: torch.dtype) -> None:
    logits = hard_rows(1000, seed=5).to(dtype)
    ids, kappa = draws(len(logits), 1000, seed=6)
    bound = logits.float().nan_to_num(0.0, 0.0, 0.0).amax(dim=-1) - 3
    actual = row_statistics(logits, ids, kappa=kappa, keep_min=bound, backend=backend)
    assert_statistics_close(actual, expected(logits, ids, kappa, bound), tolerance=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded", "int32_ids"])
def test_strides_are_free(backend: str, layout: str) -> None:
    logits = hard_rows(600, seed=7)
    ids, kappa = draws(len(logits), 600, seed=8)
    wanted = expected(logits, ids, kappa)
    if layout == "transposed":
        logits = logits.t().contiguous().t()
    elif layout == "sliced":
        logits = torch.cat([logits, logits], dim=1)[:, 600:]
        kappa = kappa.repeat_interleave(2)[::2]
    elif layout == "expanded":
        logits, wanted = logits[:1].expand(10, -1), expected(logits[:1].repeat(10, 1), ids, kappa)
    else:
        ids = ids.int()
    assert_statistics_close(row_statistics(logits, ids, kappa=kappa, backend=backend), wanted, tolerance=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_special_rows_have_the_documented_values(backend: str) -> None:
    logits = hard_rows(9)
    ids = torch.full((10,), 4)
    ids[0] = -1
    result = row_statistics(logits, ids, kappa=2.0, backend=backend)
    assert result.log_p[0].isnan()
    assert result.log_q[0].isnan()
    assert not result.entropy[0].isnan()
    flat = (result.log_p[1], result.entropy[1], -result.log_z[1])
    assert [figure.item() for figure in flat] == pytest.approx(
        [-math.log(9), math.log(9), math.log(9)], abs=1e-6
    )
    assert (result.varentropy[1].item(), result.logit_std[1].item(), result.gap[1].item()) == (0, 0, 0)
    assert result.top2_ids[1].tolist() == [0, 1]
    alone = (result.log_p, result.log_q, result.log_z, result.entropy, result.varentropy, result.logit_std)
    assert [figure[5].item() for figure in alone] == [0.0] * 6
    assert (result.top2_ids[5].tolist(), result.top2_probs[5].tolist()) == ([4, -1], [1.0, 0.0])
    for row in (6, 7, 8):
        assert all(figure[row].isnan() for figure in alone)
        assert result.top2_ids[row].tolist() == [-1, -1]
        assert result.top2_probs[row].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_batch_gives_empty_statistics(backend: str) -> None:
    result = row_statistics(torch.empty(0, 5), torch.empty(0, dtype=torch.int64), kappa=1.0, backend=backend)
    assert (result.log_p.shape, result.top2_ids.shape) == ((0,), (0, 2))


finite = st.floats(-60, 60, width=32)
logit = st.one_of(finite, finite, finite, st.just(-math.inf), st.sampled_from([0.0, 1.0]))


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data())
def test_random_rows_match_the_float64_reference(backend: str, data: st.DataObject) -> None:
    batch, vocab = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 30))
    row = st.lists(
        st.one_of(logit, st.just(math.nan)) if data.draw(st.booleans()) else logit,
        min_size=vocab,
        max_size=vocab,
    )
    logits = torch.tensor([data.draw(row) for _ in range(batch)])
    ids = torch.tensor([data.draw(st.integers(-1, vocab - 1)) for _ in range(batch)])
    kappa = torch.tensor([data.draw(st.floats(0.0625, 16, width=32)) for _ in range(batch)])
    bound = torch.tensor([data.draw(finite) for _ in range(batch)]) if data.draw(st.booleans()) else None
    actual = row_statistics(logits, ids, kappa=kappa, keep_min=bound, backend=backend)
    assert_statistics_close(actual, expected(logits, ids, kappa, bound), tolerance=1e-5)


@pytest.mark.skipif(INTERPRETED, reason="about the reference, run with it")
@settings(max_examples=200, deadline=None)
@given(
    row=st.lists(finite, min_size=1, max_size=40),
    alpha=st.floats(1, 8),
    kappa=st.floats(0.125, 8, width=32),
    index=st.integers(0, 39),
)
def test_the_weight_identity_holds_in_float64(
    row: list[float], alpha: float, kappa: float, index: int
) -> None:
    logits = torch.tensor([row], dtype=torch.float64)
    result = row_statistics(logits, torch.tensor([index % len(row)]), kappa=kappa, backend="reference")
    assert result.log_p.dtype == torch.float64
    log_w = alpha * result.log_p - result.log_q
    other = (alpha - kappa) * result.log_p + result.log_z
    assert log_w.item() == pytest.approx(other.item(), abs=1e-9, rel=1e-12)
    if 1 <= kappa <= alpha:
        assert log_w.item() <= 1e-9


@pytest.mark.skipif(INTERPRETED, reason="about the reference, run with it")
@settings(max_examples=100, deadline=None)
@given(row=st.lists(logit, min_size=2, max_size=12), kappa=st.floats(0.125, 8))
def test_the_reference_is_the_textbook_definition(row: list[float], kappa: float) -> None:
    x = np.array(row)
    if not np.isfinite(x).any():
        return
    token = int(np.argmax(x))
    p = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
    support = p[p > 0]
    entropy = -(support * np.log(support)).sum()
    result = row_statistics(
        torch.tensor([row], dtype=torch.float64), torch.tensor([token]), kappa=kappa, backend="reference"
    )
    finite_logits = x[np.isfinite(x)]
    kappa32 = float(np.float32(kappa))
    wanted = {
        "log_p": np.log(p[token]),
        "log_z": np.log((support**kappa32).sum()),
        "log_q": np.log(p[token] ** kappa32 / (support**kappa32).sum()),
        "entropy": entropy,
        "varentropy": (support * (np.log(support) + entropy) ** 2).sum(),
        "logit_mean": finite_logits.mean(),
        "logit_std": finite_logits.std(),
    }
    for name, value in wanted.items():
        assert getattr(result, name).item() == pytest.approx(value, abs=1e-8), name
    assert result.top2_probs[0].tolist() == pytest.approx(sorted(p)[-1:-3:-1], abs=1e-12)
    assert result.gap.item() == pytest.approx(sorted(p)[-1] - sorted(p)[-2], abs=1e-12)
