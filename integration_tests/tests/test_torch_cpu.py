"""The batched attention of the plain-CPU platform against one sequence at a time, in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from sglang_torch_cpu.attention import LONG, attend, decoding, extending

HEADS, KEY_HEADS, WIDTH, SLOTS = 4, 2, 8, 600


@pytest.fixture
def caches() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    keys, values = torch.randn(2, SLOTS, KEY_HEADS, WIDTH, dtype=torch.float64)
    return keys, values


def reference(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor, seen: int
) -> torch.Tensor:
    """[heads, width] of one query that sees the first `seen` slots of its sequence."""
    rows = []
    for head in range(HEADS):
        shared = head // (HEADS // KEY_HEADS)
        scores = keys[slots[:seen], shared] @ query[head] / math.sqrt(WIDTH)
        rows.append(torch.softmax(scores, 0) @ values[slots[:seen], shared])
    return torch.stack(rows)


@pytest.mark.parametrize(
    "new",
    [
        pytest.param([1, 1, 1, 1], id="decoding"),
        pytest.param([3, 1, 7, 2], id="extending"),
        pytest.param([3, LONG + 5, 1, LONG + 1], id="long ones run alone"),
        pytest.param([LONG + 1], id="one long one"),
    ],
)
def test_attention_of_a_batch(caches: tuple[torch.Tensor, torch.Tensor], new: list[int]) -> None:
    keys, values = caches
    kept = [5, 0, 11, 1][: len(new)] if max(new) > 1 else [5, 2, 11, 1]
    lengths = [before + after for before, after in zip(kept, new, strict=True)]
    table = torch.randint(0, SLOTS, (7, 120))
    owners = torch.tensor([6, 2, 0, 3])[: len(new)]
    query = torch.randn(sum(new), HEADS, WIDTH, dtype=torch.float64)
    groups = (
        [decoding(table, owners, torch.tensor(lengths))]
        if max(new) == 1
        else extending(table, owners, torch.tensor(lengths), torch.tensor(new))
    )

    output = attend(groups, query, torch.full_like(query, torch.nan), keys, values, 1 / math.sqrt(WIDTH))

    row = 0
    for owner, before, after in zip(owners, kept, new, strict=True):
        for step in range(after):
            expected = reference(query[row], keys, values, table[owner], before + step + 1)
            torch.testing.assert_close(output[row], expected)
            row += 1
    assert row == len(output)
