"""Greedy rows take the most likely token, and the draws of the rows beside them stay as they are, to the bit.

Under `TRITON_INTERPRET=1` (started by `test_kernels_triton.py`) the tests run against the Triton kernels.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from sglang_power_kernels import counter_uniforms, greedy, sample_rows
from sglang_power_kernels.greedy import Draw, Law
from sglang_power_kernels.testing import hard_rows

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ("triton",) if INTERPRETED else ("torch", "reference")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")

LAWLESS = [False] * 6 + [True] * 3 + [False]
"""Of `hard_rows`: NaN, all -inf, +inf."""


def first_of_the_largest(row: torch.Tensor) -> int:
    """The greedy token from its definition."""
    values = row.tolist()
    return values.index(max(values))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [1, 2, 600, 1024, 3000])
@pytest.mark.parametrize("rows", [[], [0], [3, 1, 6], [8, 7, 6, 5, 4, 3, 2, 1, 0], list(range(10))])
@pytest.mark.parametrize("bounded", [False, True])
def test_greedy_rows_take_the_argmax_and_the_others_their_draws(
    backend: str, dtype: torch.dtype, vocab: int, rows: list[int], bounded: bool
) -> None:
    logits = hard_rows(vocab, seed=vocab).to(dtype)
    kappa = torch.linspace(0.3, 3, 10)
    uniforms = counter_uniforms(torch.arange(10), torch.zeros(10, dtype=torch.int64))
    bound = (logits.float().amax(dim=-1) - 4).nan_to_num(0.0, 0.0, 0.0) if bounded else None

    def ids(chosen: torch.Tensor | None) -> list[int]:
        return sample_rows(
            logits, kappa=kappa, uniforms=uniforms, keep_min=bound, greedy=chosen, backend=backend
        ).tolist()

    drawn, mixed = ids(None), ids(torch.tensor(rows, dtype=torch.int64))
    for row in range(10):
        if row not in rows:
            assert mixed[row] == drawn[row]
        elif not (LAWLESS[row] or not torch.isfinite(logits[row].float().max())):
            assert mixed[row] == first_of_the_largest(logits[row])
        else:
            assert mixed[row] == -1


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_largest_logits_give_the_lowest_id_in_any_batch_slot(backend: str) -> None:
    """A draw from the same kept set, as `top_k=1` by a bound would be, takes any of them."""
    row = torch.zeros(700)
    row[[13, 600, 699]] = 5.0
    logits, count = row.expand(40, -1).contiguous(), 40
    uniforms = counter_uniforms(torch.arange(count), torch.zeros(count, dtype=torch.int64))
    ids = sample_rows(logits, kappa=1.0, uniforms=uniforms, greedy=torch.arange(count), backend=backend)
    assert set(ids.tolist()) == {13}
    tied = sample_rows(
        logits, kappa=1.0, uniforms=uniforms, keep_min=torch.full((count,), 5.0), backend=backend
    )
    assert set(tied.tolist()) == {13, 600, 699}, "control"


@pytest.mark.parametrize("divided", [greedy.gathered, greedy.overwritten])
def test_both_ways_to_divide_a_batch_give_the_same_ids(
    divided: Callable[[Draw, torch.Tensor, Law, torch.Tensor], torch.Tensor],
) -> None:
    """`overwritten` is the way of CUDA tensors, which this test brings to the CPU."""
    from sglang_power_kernels.torch_backend import sample_rows as draw

    logits, rows = hard_rows(900), torch.tensor([9, 0, 6, 3])
    uniforms = counter_uniforms(torch.arange(10), torch.arange(10))
    law = Law(torch.linspace(0.5, 2, 10), uniforms, torch.full((10,), -4.0), torch.full((10,), 1e4))
    found = divided(draw, logits, law, rows).tolist()
    drawn = greedy.drawn(draw, logits, law).tolist()
    likeliest = [-1 if LAWLESS[row] else first_of_the_largest(logits[row]) for row in range(10)]
    assert found == [likeliest[row] if row in rows.tolist() else drawn[row] for row in range(10)]


def test_greedy_rows_are_not_drawn() -> None:
    """On a CPU the backend never sees them; where all rows are greedy it is not called."""
    seen: list[torch.Tensor] = []

    def draw(logits: torch.Tensor, **_: torch.Tensor | None) -> torch.Tensor:
        seen.append(logits)
        return torch.zeros(len(logits), dtype=torch.int64)

    logits = hard_rows(50)
    law = Law(torch.ones(10), torch.zeros(10), None, None)
    greedy.drawn_beside_greedy(draw, logits, law, torch.arange(0, 10, 2))
    assert len(seen) == 1
    assert torch.equal(seen[0][:3], logits[[1, 3, 5]])
    greedy.drawn_beside_greedy(draw, logits, law, torch.arange(10))
    assert len(seen) == 1


@pytest.mark.parametrize("vocab", [1, 511, 512, 513, 1024, 1500])
def test_the_most_likely_token_is_found_wherever_it_stands(vocab: int) -> None:
    places = sorted({0, vocab // 2, vocab - 1, *(place for place in (511, 512, 1023) if place < vocab)})
    logits = torch.randn(len(places), vocab, generator=torch.Generator().manual_seed(vocab))
    logits[torch.arange(len(places)), torch.tensor(places)] = 9.0
    assert greedy.most_likely(logits).tolist() == places
    assert greedy.most_likely(logits.t().contiguous().t()).tolist() == places, "other strides"
    assert greedy.most_likely(logits[:0]).tolist() == []
    logits[:, vocab - 1] = 9.0
    assert greedy.most_likely(logits).tolist() == places, "the first of equal ones"
