"""Comparisons without a result: the answers keep classes of their own, and the response says why."""

from __future__ import annotations

from typing import Any

import pytest
from selection_cases import MODEL, L, LastDigit, cot
from sglang_power.answers.equivalence import FunctionRelation, Verdict, undecided
from sglang_power.engines.tabular import TabularEngine, TabularModel
from sglang_power.rng import Key
from sglang_power.samplers.candidates import Selection
from sglang_power.samplers.samples import Samples
from sglang_power.samplers.vote import Vote
from sglang_power.types import ProposalLaw


class Slow:
    """Never comes to a result."""

    async def same(self, a: str, b: str) -> Verdict:  # noqa: ARG002
        return undecided("timed out after 2 s")


async def run(sampler: str, relation: Any) -> Selection:
    if sampler == "cot":
        driver = cot(model=TabularModel.random(2, vocab=5, horizon=5), k=5)
        driver._relation = relation
        return await driver.run()
    vote = Vote(TabularEngine(MODEL), LastDigit(), Samples(16, L, ProposalLaw(1.0), 10**6), Key(3))
    return await vote.run(relation, "count", 1.0)


@pytest.mark.parametrize("sampler", ["cot", "vote"])
async def test_answers_keep_classes_of_their_own_and_the_response_says_so(sampler: str) -> None:
    selection = await run(sampler, Slow())
    values = [one["representative"] for one in selection.classes if one["representative"] is not None]
    assert len(values) == len(set(values)) > 1
    said = selection.notes["undecided"]
    assert {one["reason"] for one in said} == {"timed out after 2 s"}
    for one in said:
        assert selection.candidates[one["representative"]].value != selection.candidates[one["sample"]].value


@pytest.mark.parametrize("sampler", ["cot", "vote"])
async def test_decided_comparisons_need_no_note(sampler: str) -> None:
    selection = await run(sampler, FunctionRelation(lambda a, b: a == b))
    assert "undecided" not in selection.notes
