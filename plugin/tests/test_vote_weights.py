"""What a sample counts for in a vote: its confidence with its sign, power weights only where they are known.

Deterministic: fixed seeds on the exact language model. Error rate 0.
"""

from __future__ import annotations

from typing import Any

import pytest
from naive_tree import model
from sglang_power.answers import equivalence
from sglang_power.engines.tabular import TabularEngine
from sglang_power.rng import Key
from sglang_power.serving.samples import Samples, Vote
from sglang_power.serving.selection import Selection
from sglang_power.types import ProposalLaw
from test_selection import LastDigit

TABLE = model(1)
EXACT = equivalence("exact")


async def voted(weight: Any, seed: int = 3, count: int = 12, **samples: Any) -> Selection:
    """Draws at temperature 2, which are often less likely than another token."""
    asked = {"base": ProposalLaw(0.5), "tokens_each": 10**6, **samples}
    run = Vote(TabularEngine(TABLE), LastDigit(), Samples(count, TABLE.horizon, **asked), Key(seed))
    return await run.run(EXACT, weight, alpha=4.0)


# --- confidence ---------------------------------------------------------------------------------------


def sums_of_delta(selection: Selection) -> dict[str, float]:
    sums: dict[str, float] = {}
    for one in selection.candidates:
        if one.value is not None and one.delta is not None:
            sums[one.value] = sums.get(one.value, 0.0) + one.delta
    return sums


@pytest.mark.parametrize("seed", range(6))
async def test_the_class_of_largest_summed_confidence_wins_by_its_most_confident_sample(seed: int) -> None:
    selection = await voted("confidence", seed)
    sums = sums_of_delta(selection)
    assert selection.best.value == max(sums, key=lambda value: sums[value])
    inside = [one.delta for one in selection.candidates if one.value == selection.best.value]
    assert selection.best.delta == max(delta for delta in inside if delta is not None)
    reported = {one["representative"]: one["weight"] for one in selection.classes if one["representative"]}
    assert reported == pytest.approx(sums)
    assert selection.scores == tuple(one.delta for one in selection.candidates)
    assert "ess" not in selection.notes


async def test_negative_confidences_decide() -> None:
    """So that the test above can fail: without the negative ones another class would win."""
    winners = []
    for seed in range(6):
        selection = await voted("confidence", seed)
        sums: dict[str, float] = {}
        for one in selection.candidates:
            if one.value is not None:
                sums[one.value] = sums.get(one.value, 0.0) + max(one.delta or 0.0, 0.0)
        winners.append((selection.best.value, max(sums, key=lambda value: sums[value])))
    assert any(right != clamped for right, clamped in winners)
