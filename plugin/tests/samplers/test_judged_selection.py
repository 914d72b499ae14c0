"""What `cot`, `vote` and `best_of` make of a judge: classes, scores, and its cost in the report."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import pytest
from exact_tools import selection_report
from sglang_power.algorithms.cot import CotConfig
from sglang_power.answers import LlmRelation, equivalence
from sglang_power.engines.tabular import TabularEngine, TabularModel
from sglang_power.errors import ChainAbortedError
from sglang_power.request import BestOfRequest, CotRequest, VoteRequest
from sglang_power.rng import Key
from sglang_power.samplers.best_of import BestOf
from sglang_power.samplers.candidates import ReadAnswer, Reading, Selection
from sglang_power.samplers.cot import Cot
from sglang_power.samplers.samples import Samples
from sglang_power.samplers.scores import ScoreName, Scores
from sglang_power.samplers.vote import Vote
from sglang_power.types import ProposalLaw, Tokens, Usage

HORIZON = 5
MODEL = TabularModel.random(11, vocab=6, horizon=HORIZON, concentration=2.0)
COST = Usage(decoded=1, wasted=1, prefilled=30, depth=2, children=1)


class LastDigit:
    """The answer is the last token before the stop."""

    def text(self, ids: Sequence[int], finished: bool) -> str:
        return "".join(map(str, ids[:-1] if finished else ids))

    async def answer(self, tokens: Tokens, finished: bool) -> Reading:
        at = len(tokens) - (2 if finished else 1)
        return Reading(None if at < 0 else ReadAnswer(str(tokens.ids[at]), (at, at + 1), (at,)))


class Judge:
    """Digits of the same parity are the same; a text that ends with 2 is right."""

    def __init__(self) -> None:
        self.calls = 0

    async def yes(self, question: str) -> tuple[float, Usage]:
        self.calls += 1
        a, b = re.findall(r"^\d$", question, re.MULTILINE)
        return (0.9 if int(a) % 2 == int(b) % 2 else 0.2), COST

    async def right(self, answer: str) -> tuple[float, Usage]:
        self.calls += 1
        return math.log(0.9 if answer.endswith("2") else 0.2), COST


class AbortedJudge(Judge):
    """The request is aborted while the judge is asked."""

    async def yes(self, question: str) -> tuple[float, Usage]:
        raise ChainAbortedError(f"aborted at {question!r:.20}")

    async def right(self, answer: str) -> tuple[float, Usage]:
        raise ChainAbortedError(f"aborted at {answer!r:.20}")


async def selected(sampler: str, judge: Judge | None) -> Selection:
    """One run; without a judge by exact comparison, or by log probability."""
    engine, key = TabularEngine(MODEL), Key(4)
    same = equivalence("exact") if judge is None else LlmRelation(judge)
    if sampler == "cot":
        return await Cot(engine, LastDigit(), same, CotConfig(6, HORIZON), key, aggregate=True).run()
    samples = Samples(12, HORIZON, ProposalLaw(1.0), tokens_each=1000)
    if sampler == "vote":
        return await Vote(engine, LastDigit(), samples, key).run(same, "count", 1.0)
    best_of = BestOf(engine, LastDigit(), samples, key)
    name: ScoreName = "log_p" if judge is None else "self_evaluation"
    return await best_of.run(Scores(name, LastDigit(), evaluator=judge))


def reported(sampler: str, selection: Selection) -> dict[str, Any]:
    request = {"cot": CotRequest, "vote": VoteRequest, "best_of": BestOfRequest}[sampler]()
    return selection_report(request, selection, HORIZON)


@pytest.mark.parametrize("sampler", ["cot", "vote", "best_of"])
async def test_the_cost_of_the_judge_is_in_the_report(sampler: str) -> None:
    judge = Judge()
    judged, plain = await selected(sampler, judge), await selected(sampler, None)
    assert judge.calls > 1
    depth = 2 if sampler == "best_of" else 2 * judge.calls  # comparisons follow one another
    cost = Usage(judge.calls, 30 * judge.calls, judge.calls, depth, judge.calls)
    assert judged.usage == plain.usage + cost
    report = reported(sampler, judged)
    tokens = {"decoded_tokens": judge.calls, "prefilled_tokens": 30 * judge.calls}
    assert report["judge"] == {"calls": judge.calls, **tokens}
    assert "judge" not in reported(sampler, plain)
    assert report["children"] == plain.usage.children + judge.calls
    assert report["comparisons"] == (0 if sampler == "best_of" else judge.calls)


@pytest.mark.parametrize("sampler", ["cot", "vote"])
async def test_equal_answers_are_those_of_the_judge(sampler: str) -> None:
    selection = await selected(sampler, Judge())
    values = [one.value for one in selection.candidates]
    distinct = {value for value in values if value is not None}
    assert len(distinct) > len({int(value) % 2 for value in distinct}), "control: one parity, several digits"
    members = [one["members"] for one in selection.classes if one["representative"] is not None]
    expected = [
        [i for i, value in enumerate(values) if value is not None and int(value) % 2 == parity]
        for parity in (0, 1)
    ]
    assert sorted(members) == sorted(filter(None, expected))


async def test_best_of_returns_what_the_model_calls_right() -> None:
    selection = await selected("best_of", Judge())
    right = [one.text.endswith("2") for one in selection.candidates]
    assert set(right) == {True, False}
    assert (selection.chosen, selection.reason) == (right.index(True), "self_evaluation")
    assert selection.scores == pytest.approx([math.log(0.9 if one else 0.2) for one in right])


@pytest.mark.parametrize("sampler", ["cot", "vote", "best_of"])
async def test_an_abort_of_the_judge_ends_the_run(sampler: str) -> None:
    with pytest.raises(ChainAbortedError):
        await selected(sampler, AbortedJudge())
