"""Truncation bounds against brute force on small rows, and the radix search against sorting on large ones."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang_power_kernels import truncation_bounds
from sglang_power_kernels.testing import exact_law, hard_rows

BACKENDS = ("torch", "reference")


def brute_force(row: list[float], kappa: float, top_k: int, top_p: float, min_p: float) -> set[int]:
    """The kept set from the words of the docstring, token by token."""
    law = exact_law(torch.tensor(row), kappa).tolist()
    kept = set()
    for token, x in enumerate(row):
        larger = [other for other in range(len(row)) if row[other] > x]
        in_k = top_k <= 0 or top_k >= len(row) or len(larger) < top_k
        in_p = top_p >= 1 or not larger or sum(law[other] for other in larger) < top_p
        in_min = min_p <= 0 or x >= max(row) + math.log(min_p) / kappa
        if in_k and in_p and in_min:
            kept.add(token)
    return kept


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=200, deadline=None)
@given(
    row=st.lists(
        st.sampled_from([-3.5, -1.0, -0.0, 0.0, 0.25, 0.5, 2.0, 7.0, -math.inf]), min_size=1, max_size=12
    ),
    kappa=st.sampled_from([0.5, 1.0, 3.0]),
    top_k=st.integers(-1, 13),
    top_p=st.sampled_from([0.0, 0.1, 0.37, 0.83, 0.999, 1.0, 1.5]),
    min_p=st.sampled_from([-1.0, 0.0, 0.001, 0.07, 0.53, 1.0]),
)
def test_the_kept_set_is_the_brute_force_one(
    backend: str, row: list[float], kappa: float, top_k: int, top_p: float, min_p: float
) -> None:
    if not any(math.isfinite(x) for x in row):
        return
    bound = truncation_bounds(
        torch.tensor([row]),
        kappa=kappa,
        top_k=torch.tensor([top_k]),
        top_p=torch.tensor([top_p], dtype=torch.float64),
        min_p=torch.tensor([min_p]),
        backend=backend,
    )
    kept = {token for token, x in enumerate(row) if x >= bound.item()}
    assert kept == brute_force(row, kappa, top_k, top_p, min_p)


@pytest.mark.parametrize("vocab", [1, 2, 1000, 151_936])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_radix_search_finds_what_sorting_finds(vocab: int, dtype: torch.dtype) -> None:
    logits = hard_rows(vocab, seed=9)[: 10 if vocab < 10_000 else 5].to(dtype)
    rows = len(logits)
    limits = {
        "top_k": torch.tensor([1, 3, 50, 7, 2, 0, 1, 1, 5, 4])[:rows],
        "top_p": torch.tensor([0.9, 0.31, 0.999, 0.5, 0.8, 0.1, 1.0, 0.5, 0.5, 0.95])[:rows],
        "min_p": torch.tensor([0.05, 0.0, 0.5, 0.1, 0.02, 1.0, 0.1, 0.1, 0.1, 0.001])[:rows],
    }
    kappa = torch.linspace(0.5, 3, rows)
    for chosen in (["top_k"], ["top_p"], ["min_p"], ["top_k", "top_p", "min_p"]):
        top_k, top_p, min_p = (limits[name] if name in chosen else None for name in limits)
        fast, slow = (
            truncation_bounds(logits, kappa=kappa, top_k=top_k, top_p=top_p, min_p=min_p, backend=backend)
            for backend in BACKENDS
        )
        assert fast.tolist() == slow.tolist(), chosen


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_limit_cuts_nothing(backend: str) -> None:
    logits = hard_rows(50)
    off = truncation_bounds(logits, kappa=1.0, backend=backend)
    turned_off = truncation_bounds(
        logits,
        kappa=1.0,
        top_k=torch.tensor([0, -1, 50, 99, 50, 50, 2, 2, 2, 50]),
        top_p=torch.ones(10),
        min_p=torch.zeros(10),
        backend=backend,
    )
    assert off.tolist() == turned_off.tolist() == [-math.inf] * 10


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_with_the_bound_are_all_kept(backend: str) -> None:
    logits = torch.tensor([[1.0, 5.0, 1.0, 1.0, 0.0]])
    bound = truncation_bounds(logits, kappa=1.0, top_k=torch.tensor([2]), backend=backend)
    assert (logits >= bound[:, None]).tolist() == [[True, True, True, True, False]]
