"""The life of a selecting request on the host: aborts at any time, and what is left of its choices.

Children are replaced by the exact language model; the judge and the reward fail as they do once a request is
aborted.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.engines.tabular import TabularEngine
from sglang_power.errors import ChainAbortedError, HostError
from sglang_power.request import VoteRequest
from sglang_power.rng import Key
from sglang_power.samplers.base import Outcome, Tools
from sglang_power.samplers.candidates import Selection
from sglang_power.sglang_host.tokenizer.answer_run import AnswerRun
from sglang_power.sglang_host.tokenizer.parent import Parent
from sglang_power.types import Continuation, Usage
from stub_parent import (
    DRAWN,
    MODEL,
    TOKENS,
    StubParent,
    on_the_exact_model,
    plan_of,
    run_of,
    selected,
)

TREE = {"sampler": "branch", "policy": "tree", "threshold": 0.0, "max_depth": 1, "max_branches": 2}


# --- several choices ----------------------------------------------------------------------------------


class StubSampler:
    """Choice 0 is done at once; the others tell that a token is certain, and are aborted."""

    request = VoteRequest

    async def run(self, asked: VoteRequest, given: Tools) -> Outcome:
        if given.key.chain:
            assert given.observer is not None
            given.observer(TOKENS.first(1), {"tokens": 1})
            await asyncio.sleep(0.01)
            raise ChainAbortedError("aborted")
        return Outcome(TOKENS, True, Usage(decoded=2), "selection", asked.echo())


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> AnswerRun:
    """A request of two choices, the second of which is aborted before it has an answer."""
    parent = StubParent()
    on_the_exact_model(monkeypatch, TabularEngine(MODEL), parent)
    plan = dataclasses.replace(plan_of({"sampler": "vote"}, chains=2), sampler=StubSampler())
    return run_of(parent, plan)


def shown(answer: dict[str, Any]) -> tuple[str, str | None]:
    reason = answer["meta_info"]["finish_reason"]
    return answer["text"], reason and reason["type"]


async def test_an_abort_of_one_choice_leaves_the_others_their_answers(
    run: AnswerRun,
) -> None:
    answers = await run.answers(None, 0)
    assert [shown(one) for one in answers] == [("a", "stop"), ("a", "abort")]
    done, aborted = (one["meta_info"]["power"] for one in answers)
    assert (done["stopped_by"], done["decoded_tokens"], done["prefilled_tokens"]) == ("completed", 2, 2)
    assert aborted == {"sampler": "vote", "stopped_by": "abort"}


async def test_every_choice_of_a_stream_ends_once(run: AnswerRun) -> None:
    got: list[tuple[int, tuple[str, str | None]]] = []
    await run.answers(lambda index, answer: got.append((index, shown(answer))), 5)
    assert got == [(5, ("a", "stop")), (6, ("a", None)), (6, ("a", "abort"))]


@pytest.mark.parametrize(("tool", "need"), [("reader", "answer"), ("relation", "equivalence")])
async def test_a_sampler_is_told_which_need_its_request_does_not_name(
    monkeypatch: pytest.MonkeyPatch, tool: str, need: str
) -> None:
    """Nobody has checked whether the server has it: a reader would ask the model, which nobody wants."""

    class Careless(StubSampler):
        async def run(self, _: Any, given: Tools) -> Outcome:
            raise AssertionError(getattr(given, tool))

    parent = StubParent()
    on_the_exact_model(monkeypatch, TabularEngine(MODEL), parent)
    plan = dataclasses.replace(plan_of({"sampler": "power"}), sampler=Careless(), extractor=None)
    with pytest.raises(HostError, match=f"'power' uses what its request does not need: {need}"):
        await run_of(parent, plan).answers(None, 0)


# --- one run for all choices --------------------------------------------------------------------------


class Counting(TabularEngine):
    """The exact model, with the most likely tokens; counts what it is asked for."""

    room = 100

    def __init__(self) -> None:
        super().__init__(MODEL)
        self.calls = 0

    async def generate(self, call: ContinuationCall) -> Continuation:
        self.calls += 1
        return await super().generate(call)


Choices = tuple[list[dict[str, Any]], Counting, list[tuple[int, dict[str, Any]]]]


async def choices(monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], count: int) -> Choices:
    """The answers of a whole request on the exact model, its engine and what was streamed."""

    engine, sent, parent = Counting(), list[tuple[int, dict[str, Any]]](), StubParent()
    on_the_exact_model(monkeypatch, engine, parent)
    run = run_of(parent, plan_of({"seed": 5, **asked}, chains=count))
    return await run.answers(lambda index, answer: sent.append((index, answer)), 0), engine, sent


COST = ("decoded_tokens", "prefilled_tokens", "wasted_tokens", "depth", "children")
COT = {"sampler": "cot", "k": 4, "answer": "text"}
FIXED = [
    COT,
    {**COT, "select": "max"},
    {**COT, "answer": "continuation"},
    {**TREE, "answer": "text"},
    {**TREE, "policy": "beam"},
    {"sampler": "branch", "threshold": 0.0, "lookahead_tokens": 2},
]
DRAWING = [
    {**COT, "continuation_policy": {"sampler": "temperature", "value": 2.0}},
    {**TREE, "branch_tokens": "drawn"},
    {**TREE, "refine": {"sampler": "power", "steps": 2}},
    {**TREE, "continuation_policy": {"sampler": "temperature", "value": 2.0}},
    {"sampler": "vote", "samples": 3, "answer": "text"},
    {"sampler": "best_of", "samples": 3, "answer": "text"},
]


@pytest.mark.parametrize("asked", FIXED, ids=str)
async def test_choices_that_no_seed_touches_are_found_once(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    (alone,), once, _ = await choices(monkeypatch, asked, 1)
    three, engine, sent = await choices(monkeypatch, asked, 3)
    assert engine.calls == once.calls
    assert [answer["output_ids"] for answer in three] == [alone["output_ids"]] * 3
    assert [answer["text"] for answer in three] == [alone["text"]] * 3
    reports = [answer["meta_info"]["power"] for answer in three]
    assert [power.get("copy_of") for power in reports] == [None, 0, 0]
    for name in COST:
        assert [power[name] for power in reports] == [alone["meta_info"]["power"][name], 0, 0]
    assert all(power["paths"] == reports[0]["paths"] for power in reports)
    ended = [index for index, answer in sent if answer["meta_info"]["finish_reason"] is not None]
    assert sorted(ended) == [0, 1, 2], "every choice of a stream ends once"


@pytest.mark.parametrize("asked", FIXED, ids=str)
async def test_separate_runs_would_find_the_same(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    """So nothing is lost: the runs of other choices, with seeds of their own, give the same answer."""
    found = [await selected(monkeypatch, asked, engine=Counting(), key=Key(5, number)) for number in range(6)]
    assert {one.best.tokens.ids for one in found} == {found[0].best.tokens.ids}
    assert {one.tied for one in found} == {False}


@pytest.mark.parametrize("asked", DRAWING, ids=str)
async def test_choices_that_are_drawn_are_runs_of_their_own(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    three, engine, _ = await choices(monkeypatch, asked, 3)
    assert engine.calls >= 3
    reports = [answer["meta_info"]["power"] for answer in three]
    assert not any("copy_of" in power for power in reports)
    assert all(power["decoded_tokens"] > 0 for power in reports)
    seen = {tuple(path["text"] for path in power["paths"]) for power in reports}
    assert len(seen) > 1, "control: they differ"


async def test_a_tie_that_a_seed_decides_is_drawn_by_every_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves with different answers, one vote each."""
    asked = {**TREE, "max_depth": 2, "max_branches": 4, "answer": "text", "score": "vote"}
    count = 12
    answers, _, _ = await choices(monkeypatch, asked, count)
    alone = [
        (await selected(monkeypatch, asked, engine=Counting(), key=Key(5, number))).best.tokens.ids
        for number in range(count)
    ]
    assert [tuple(answer["output_ids"]) for answer in answers] == alone
    assert len(set(alone)) > 1
    assert not any("copy_of" in answer["meta_info"]["power"] for answer in answers)


# --- what had ended before the abort ------------------------------------------------------------------


class Aborting(TabularEngine):
    """Aborts the request once some calls have been answered; further ones fail."""

    def __init__(self, parent: Parent, calls: int) -> None:
        super().__init__(MODEL)
        self._parent, self._left = parent, calls

    async def generate(self, call: ContinuationCall) -> Continuation:
        self._parent.check_abort()
        self._left -= 1
        if not self._left:
            self._parent.abort()
        return await super().generate(call)


async def aborted(monkeypatch: pytest.MonkeyPatch, calls: int, asked: dict[str, Any]) -> Selection:
    """One whose request is aborted with its last candidate."""
    parent = StubParent()
    return await selected(monkeypatch, asked, parent=parent, engine=Aborting(parent, calls))


@pytest.mark.parametrize(
    ("calls", "asked"),
    [
        (3, {**TREE, "answer": "continuation", "score": "vote"}),
        (3, {**TREE, "score": "self_evaluation"}),
        (3, {**TREE, "score": "reward", "reward": "r"}),
        (4, {**DRAWN, "score": "self_evaluation"}),
        (4, {**DRAWN, "score": "reward", "reward": "r"}),
        (4, {"sampler": "vote", "samples": 4, "stopping": "never", "answer": "text", "equivalence": "llm"}),
        (4, {"sampler": "vote", "samples": 4, "stopping": "never", "answer": "continuation"}),
        (4, {"sampler": "cot", "k": 4, "answer": "text", "equivalence": "llm"}),
        (4, {"sampler": "cot", "k": 4, "answer": "continuation"}),
    ],
    ids=str,
)
async def test_an_abort_chooses_from_the_answers_that_are_there(
    monkeypatch: pytest.MonkeyPatch, calls: int, asked: dict[str, Any]
) -> None:
    """Nothing can be asked any more: neither the model, nor a judge, nor a reward."""
    selection = await aborted(monkeypatch, calls, asked)
    assert selection.stopped_by == "abort"
    assert len(selection.candidates) == (2 if asked["sampler"] == "branch" else 4)
    assert selection.best.tokens.ids
    if "score" in asked and asked["score"] != "vote":
        assert set(selection.scores) == {None}
        assert selection.best.mean_log_p == max(one.mean_log_p for one in selection.candidates)
    if asked.get("answer") == "continuation":
        assert {one.note for one in selection.candidates} == {"the request was aborted"}


async def test_an_abort_before_any_answer_ends_the_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ChainAbortedError):
        await aborted(monkeypatch, 1, {**TREE, "score": "self_evaluation"})
