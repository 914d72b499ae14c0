"""The FlashInfer backend without a GPU: the installed signatures, and its law with torch stand-ins."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable

import pytest
import torch
from sglang_power_kernels import counter_uniforms, flashinfer_backend, reference
from sglang_power_kernels.testing import NoHostReads, exact_law, g_test, hard_rows

CALLS: list[tuple[str, tuple[str, ...]]] = [
    ("sampling_from_logits", ("logits", "deterministic", "seed", "offset")),
    ("top_k_mask_logits", ("logits", "top_k")),
    ("top_p_renorm_probs", ("probs", "top_p", "is_deterministic")),
]


def gumbel_argmax(
    logits: torch.Tensor, deterministic: bool, seed: torch.Tensor, offset: torch.Tensor
) -> torch.Tensor:
    """The law that FlashInfer documents for `sampling_from_logits`, seeded per row."""
    assert deterministic
    assert logits.dtype == torch.float32
    assert logits.is_contiguous()
    assert seed.dtype == offset.dtype == torch.int64
    tokens = torch.arange(logits.shape[1])
    grid = counter_uniforms(seed.repeat_interleave(len(tokens)), tokens.repeat(len(seed)))
    noise = -(-grid.clamp_min(1e-300).log()).log()
    return (logits.double() + noise.view_as(logits)).argmax(dim=-1).int()


def mask_top_k(logits: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    """Exactly k logits, as FlashInfer keeps them: ties broken by position."""
    assert top_k.dtype == torch.int32
    rank = logits.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return logits.masked_fill(rank >= top_k[:, None], -torch.inf)


def renorm_top_p(probs: torch.Tensor, top_p: torch.Tensor, is_deterministic: bool) -> torch.Tensor:
    """The smallest set of mass p; ties with its last member are kept, as FlashInfer's threshold does."""
    assert is_deterministic
    ordered = probs.double().sort(dim=-1, descending=True).values
    needed = (ordered.cumsum(dim=-1) - ordered < top_p.double()[:, None]).sum(dim=-1, keepdim=True)
    kept = probs >= ordered.gather(1, (needed - 1).clamp_min(0))
    return torch.where(kept, probs, 0.0)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = importlib.import_module("flashinfer.sampling")
    stand_in: dict[str, Callable[..., torch.Tensor]] = {
        "sampling_from_logits": gumbel_argmax,
        "top_k_mask_logits": mask_top_k,
        "top_p_renorm_probs": renorm_top_p,
    }
    for name, function in stand_in.items():
        monkeypatch.setattr(sampling, name, function)


@pytest.mark.parametrize(("function", "arguments"), CALLS)
def test_the_installed_flashinfer_takes_these_arguments(function: str, arguments: tuple[str, ...]) -> None:
    signature = inspect.signature(getattr(importlib.import_module("flashinfer.sampling"), function))
    assert set(arguments) <= set(signature.parameters)


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("truncated", [False, True])
def test_draws_follow_the_exact_law(truncated: bool) -> None:
    row = torch.randn(60, generator=torch.Generator().manual_seed(3))
    size = 40_000
    low, high = (torch.full((size,), bound) for bound in (-0.5, 1.5))
    uniforms = counter_uniforms(torch.full((size,), 5), torch.arange(size))
    ids = flashinfer_backend.sample_rows(
        row.expand(size, -1),
        kappa=torch.full((size,), 2.0),
        uniforms=uniforms,
        keep_min=low if truncated else None,
        keep_max=high if truncated else None,
    )
    law = exact_law(row, 2.0, *((-0.5, 1.5) if truncated else (None, None)))
    colder = exact_law(row, 2.1, *((-0.5, 1.5) if truncated else (None, None)))
    assert ids.dtype == torch.int64
    assert g_test(ids, law) > 1e-3
    assert g_test(ids, colder) < 1e-6


@pytest.mark.usefixtures("stand_ins")
def test_a_row_without_a_law_gives_no_token() -> None:
    logits, kappa = hard_rows(600), torch.ones(10)
    uniforms = torch.full((10,), 0.5)
    ids = flashinfer_backend.sample_rows(logits, kappa=kappa, uniforms=uniforms, keep_min=None, keep_max=None)
    assert (ids < 0).tolist() == [False] * 6 + [True] * 3 + [False]
    above = torch.full((10,), 1e6)
    ids = flashinfer_backend.sample_rows(
        logits, kappa=kappa, uniforms=uniforms, keep_min=above, keep_max=None
    )
    assert ids.tolist() == [-1] * 10


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("vocab", [1, 2, 50, 3000])
def test_bounds_are_those_of_the_reference(vocab: int) -> None:
    logits = hard_rows(vocab, seed=2)
    limits = {
        "top_k": torch.tensor([1, 3, 50, 7, 2, 0, 1, 1, 5, 4]),
        "top_p": torch.tensor([0.9, 0.31, 0.999, 0.5, 0.8, 0.1, 1.0, 0.5, 0.5, 0.95]),
        "min_p": torch.tensor([0.05, 0.0, 0.5, 0.1, 0.02, 1.0, 0.1, 0.1, 0.1, 0.001]),
    }
    kappa = torch.linspace(0.5, 3, 10)
    for chosen in limits:
        top_k, top_p, min_p = (limits[name] if name == chosen else None for name in limits)
        found = flashinfer_backend.truncation_bounds(
            logits, kappa=kappa, top_k=top_k, top_p=top_p, min_p=min_p
        )
        wanted = reference.truncation_bounds(logits, kappa=kappa, top_k=top_k, top_p=top_p, min_p=min_p)
        assert found.tolist() == wanted.tolist(), chosen


@pytest.mark.usefixtures("stand_ins")
def test_nothing_is_read_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = importlib.import_module("flashinfer.sampling")
    monkeypatch.setattr(sampling, "sampling_from_logits", lambda logits, **_: logits.argmax(dim=-1).int())
    logits, ones = hard_rows(100), torch.ones(10)
    with NoHostReads():
        flashinfer_backend.sample_rows(logits, kappa=ones, uniforms=ones / 2, keep_min=ones, keep_max=ones)
        flashinfer_backend.truncation_bounds(
            logits, kappa=ones, top_k=ones.long(), top_p=ones / 2, min_p=ones / 2
        )
