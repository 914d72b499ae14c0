"""Sampling: every backend draws from the exact law, and a slightly wrong law is caught.

Under `TRITON_INTERPRET=1` (started by `test_kernels_triton.py`) the same tests run against the Triton
kernels, with fewer draws; there the law follows from the ids being the reference's at the same uniforms.
"""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang_power_kernels import counter_uniforms, sample_rows
from sglang_power_kernels.testing import exact_law, g_test, hard_rows

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ("triton",) if INTERPRETED else ("torch", "reference")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")

DRAWS = 40_000
CASES = [
    pytest.param(vocab, kappa, truncated, id=f"vocab{vocab}-kappa{kappa}-{truncated}")
    for vocab, kappa in ((7, 1.0), (7, 4.0), (300, 1.0), (300, 2.5), (2000, 1.0))
    for truncated in ("whole", "min", "both")
]
FAMILY_WISE_ERROR = 1e-3
LEVEL = FAMILY_WISE_ERROR / (2 * len(CASES))
CONTROL_LEVEL = 1e-6


def row_and_bounds(
    vocab: int, kappa: float, truncated: str
) -> tuple[torch.Tensor, float | None, float | None]:
    """A row whose tempered law is neither flat nor peaked, so that the control below has power."""
    row = 2.0 / kappa * torch.randn(vocab, generator=torch.Generator().manual_seed(vocab))
    high = row.sort(descending=True).values
    keep_min = float(high[vocab // 2]) if truncated != "whole" else None
    keep_max = float(high[1]) if truncated == "both" else None
    return row, keep_min, keep_max


def drawn(
    row: torch.Tensor,
    kappa: float,
    bounds: tuple[float | None, float | None],
    backend: str,
    draws: int = DRAWS,
) -> torch.Tensor:
    """Ids drawn from one row, in batches, at counter-based uniforms."""
    ids = []
    batch = max(1, 500_000 // len(row))
    for start in range(0, draws, batch):
        size = min(batch, draws - start)
        low, high = (None if bound is None else torch.full((size,), bound) for bound in bounds)
        uniforms = counter_uniforms(torch.full((size,), 17), torch.arange(start, start + size))
        logits = row.expand(size, -1)
        ids.append(
            sample_rows(logits, kappa=kappa, uniforms=uniforms, keep_min=low, keep_max=high, backend=backend)
        )
    return torch.cat(ids)


@pytest.mark.skipif(INTERPRETED, reason="too many programs for the interpreter")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("vocab", "kappa", "truncated"), CASES)
def test_draws_follow_the_exact_law(backend: str, vocab: int, kappa: float, truncated: str) -> None:
    row, keep_min, keep_max = row_and_bounds(vocab, kappa, truncated)
    ids = drawn(row, kappa, (keep_min, keep_max), backend)
    assert g_test(ids, exact_law(row, kappa, keep_min, keep_max)) > LEVEL


@pytest.mark.skipif(INTERPRETED, reason="too many programs for the interpreter")
@pytest.mark.parametrize(("vocab", "kappa", "truncated"), CASES)
def test_a_law_five_percent_too_cold_is_caught(vocab: int, kappa: float, truncated: str) -> None:
    row, keep_min, keep_max = row_and_bounds(vocab, kappa, truncated)
    ids = drawn(row, 1.05 * kappa, (keep_min, keep_max), "torch")
    assert g_test(ids, exact_law(row, kappa, keep_min, keep_max)) < CONTROL_LEVEL


@pytest.mark.skipif(INTERPRETED, reason="the interpreter needs seconds per row")
def test_a_large_vocabulary_follows_the_law() -> None:
    row, _, _ = row_and_bounds(32_001, 2.0, "whole")
    law = exact_law(row, 2.0)
    assert g_test(drawn(row, 2.0, (None, None), "torch", 20_000), law) > FAMILY_WISE_ERROR
    assert g_test(drawn(row, 2.1, (None, None), "torch", 20_000), law) < CONTROL_LEVEL


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("vocab", [1, 2, 513, 3000])
@pytest.mark.parametrize("truncated", [False, True])
def test_ids_invert_the_cumulated_law(backend: str, vocab: int, truncated: bool) -> None:
    logits = hard_rows(vocab, seed=vocab)[[0, 1, 3, 4, 9]].repeat(6, 1)
    uniforms = counter_uniforms(torch.arange(30), torch.zeros(30, dtype=torch.int64))
    kappa = torch.linspace(0.3, 3, 30)
    bound = logits.amax(dim=-1) - 4 if truncated else None
    ids = sample_rows(logits, kappa=kappa, uniforms=uniforms, keep_min=bound, backend=backend)
    for row in range(30):
        law = exact_law(logits[row], float(kappa[row]), None if bound is None else float(bound[row]))
        mass = law.cumsum(dim=-1)
        assert law[ids[row]] > 0
        assert mass[ids[row]] - law[ids[row]] - 1e-6 <= uniforms[row] <= mass[ids[row]] + 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_without_a_law_gives_no_token(backend: str) -> None:
    logits = hard_rows(600)
    uniforms = torch.full((10,), 0.5)
    ids = sample_rows(logits, kappa=1.0, uniforms=uniforms, backend=backend)
    assert (ids < 0).tolist() == [False] * 6 + [True] * 3 + [False]
    assert ids[5] == 300
    above = torch.full((10,), 1e6)
    assert (
        sample_rows(logits, kappa=1.0, uniforms=uniforms, keep_min=above, backend=backend).tolist()
        == [-1] * 10
    )


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=15 if INTERPRETED else 150, deadline=None)
@given(data=st.data())
def test_a_token_of_probability_zero_is_never_drawn(backend: str, data: st.DataObject) -> None:
    values = st.sampled_from([-float("inf"), 0.0, -200.0, 1.0, 30.0])
    row = torch.tensor(data.draw(st.lists(values, min_size=1, max_size=12)))
    width = data.draw(st.sampled_from([len(row), 520]))
    logits = torch.full((1, width), -torch.inf)
    logits[0, width - len(row) :] = row
    edge = st.sampled_from([0.0, 2.0**-53, 0.5, 1 - 2.0**-24, 1 - 2.0**-53])
    uniforms = torch.tensor([data.draw(edge)], dtype=torch.float64)
    kappa = data.draw(st.sampled_from([0.25, 1.0, 4.0]))
    drawn_id = int(sample_rows(logits, kappa=kappa, uniforms=uniforms, backend=backend)[0])
    if torch.isneginf(row).all():
        assert drawn_id == -1
    else:
        assert exact_law(logits[0], kappa)[drawn_id] > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_draw_does_not_depend_on_the_batch_slot(backend: str) -> None:
    logits = torch.randn(5, 800, generator=torch.Generator().manual_seed(1))
    uniforms = counter_uniforms(torch.arange(5), torch.arange(5))
    together = sample_rows(logits, kappa=1.0, uniforms=uniforms, backend=backend)
    backwards = sample_rows(logits.flip(0), kappa=1.0, uniforms=uniforms.flip(0), backend=backend)
    alone = [
        sample_rows(logits[i : i + 1], kappa=1.0, uniforms=uniforms[i : i + 1], backend=backend)
        for i in range(5)
    ]
    assert together.dtype == torch.int64
    assert together.tolist() == backwards.flip(0).tolist() == torch.cat(alone).tolist()
