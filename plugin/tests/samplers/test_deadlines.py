"""Deadlines and aborts reach whatever reads, compares and scores answers.

A call that nothing ends would hang: such tests have a limit, which a run that is right never meets.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
from selection_cases import LastDigit
from sglang_power import clock
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.answers import EQUAL, ComparisonOutcome, LlmRelation, equivalence, undecided
from sglang_power.answers.equivalence import FunctionRelation
from sglang_power.engines.tabular import TabularEngine
from sglang_power.rewards import NamedReward
from sglang_power.rewards.base import FunctionReward
from sglang_power.samplers.candidates import Selection
from sglang_power.samplers.deadlines import BoundedEvaluator, BoundedReader, Deadline, bounded
from sglang_power.sglang_host.tokenizer import tools
from sglang_power.types import Continuation, Usage
from stub_parent import DRAWN, MODEL, TOKENS, StubParent, selected

HUNG_S = 60.0
SOON_S = 0.2
PASSED = 1.0
"""A deadline long ago, unix time."""
LATE = "the request's deadline had passed"


class Stuck:
    """Never comes to a result; as a relation and as a reward."""

    def __init__(self) -> None:
        self.started, self.ended = asyncio.Event(), asyncio.Event()

    async def __call__(self, *_: str) -> bool:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()
        return True


# --- what waits for others ----------------------------------------------------------------------------


async def test_a_deadline_ends_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = Stuck()
    reward = NamedReward("r", FunctionReward("r", stuck))
    asked = {**DRAWN, "score": "reward", "reward": "r"}
    async with asyncio.timeout(HUNG_S):
        selection = await selected(monkeypatch, asked, reward=reward, deadline=clock.now() + SOON_S)
    assert selection.stopped_by == "deadline_ms"
    assert selection.scores == (None,) * 4
    assert selection.best.mean_log_p == max(one.mean_log_p for one in selection.candidates)
    assert stuck.ended.is_set()


class Unhurried(TabularEngine):
    """Ends no answer early."""

    async def generate(self, call: ContinuationCall) -> Continuation:
        return await super().generate(dataclasses.replace(call, deadline=None))


VOTE = {"sampler": "vote", "samples": 8, "answer": "text", "equivalence": "math", "stopping": "never"}


async def voted(monkeypatch: pytest.MonkeyPatch, relation: Any, **more: Any) -> Selection:
    monkeypatch.setattr(tools, "relation_of", lambda *_: relation)
    async with asyncio.timeout(HUNG_S):
        return await selected(monkeypatch, VOTE, **more)


def answers(selection: Selection) -> list[str]:
    """Of every class that has one."""
    return sorted(one["representative"] for one in selection.classes if one["representative"])


async def test_a_deadline_ends_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = Stuck()
    selection = await voted(monkeypatch, FunctionRelation(stuck), deadline=clock.now() + SOON_S)
    assert selection.stopped_by == "deadline_ms"
    assert {one["reason"] for one in selection.notes["undecided"]} == {LATE}
    assert answers(selection) == sorted({one.value for one in selection.candidates if one.value})
    assert stuck.ended.is_set()


async def test_an_abort_ends_a_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, parent = Stuck(), StubParent()
    run = asyncio.create_task(voted(monkeypatch, FunctionRelation(stuck), parent=parent))
    await stuck.started.wait()
    parent.abort()
    selection = await run
    assert selection.stopped_by == "abort"
    assert len(selection.candidates) == 8
    assert {one["reason"] for one in selection.notes["undecided"]} == {"the request was aborted"}
    assert stuck.ended.is_set()


async def test_comparisons_in_time_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    selection = await voted(monkeypatch, FunctionRelation(lambda *_: True), deadline=clock.now() + HUNG_S)
    assert (selection.stopped_by, len(answers(selection))) == ("completed", 1)
    assert "undecided" not in selection.notes


async def test_keys_are_compared_whatever_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vote over what there is at the deadline is a vote."""
    whole = await voted(monkeypatch, equivalence("normalised"))
    late = await voted(monkeypatch, equivalence("normalised"), deadline=PASSED, engine=Unhurried(MODEL))
    assert late.classes == whole.classes
    assert len(answers(late)) > 1
    assert (whole.stopped_by, late.stopped_by) == ("completed", "completed")


async def test_a_timeout_of_the_work_itself_is_no_deadline() -> None:
    async def failing() -> None:
        raise TimeoutError

    deadline = Deadline(StubParent().watched, clock.now() + HUNG_S)
    with pytest.raises(TimeoutError):
        await deadline.for_others(failing)
    assert not deadline.late


# --- what asks the model ------------------------------------------------------------------------------


class Nobody:
    """A judge and a reader that must not be asked."""

    async def yes(self, question: str) -> tuple[float, Usage]:
        raise AssertionError(question)

    async def right(self, answer: str) -> tuple[float, Usage]:
        raise AssertionError(answer)


class Asking(LastDigit):
    """A reader that would ask the model."""

    async def answer(self, *_: Any) -> Any:
        raise AssertionError


async def test_nobody_is_asked_after_the_deadline() -> None:
    deadline = Deadline(StubParent().watched, PASSED)
    assert await bounded(LlmRelation(Nobody()), deadline).same("a", "b") == undecided(LATE)
    assert await BoundedEvaluator(Nobody(), deadline).right("a") == (None, Usage())
    reading = await BoundedReader(Asking(), deadline).answer(TOKENS, True)
    assert (reading.answer, reading.note) == (None, LATE)
    assert deadline.late


async def test_children_that_run_at_the_deadline_end_by_themselves() -> None:
    class Slow(Nobody):
        async def yes(self, question: str) -> tuple[float, Usage]:
            await asyncio.sleep(2 * SOON_S)
            return float(bool(question)), Usage(children=1)

    deadline = Deadline(StubParent().watched, clock.now() + SOON_S)
    verdict = await bounded(LlmRelation(Slow()), deadline).same("a", "b")
    assert (verdict.outcome, verdict.usage) == (ComparisonOutcome.EQUAL, Usage(children=1))
    assert not deadline.late


async def test_what_a_relation_cannot_read_is_known_behind_the_wrapper() -> None:
    class Reading:
        async def same(self, a: str, b: str) -> Any:
            return EQUAL if a and b else undecided("empty")

        async def unreadable(self, answer: str) -> str | None:
            return None if answer else "empty"

    in_time: Any = bounded(Reading(), Deadline(StubParent().watched))
    assert (await in_time.unreadable(""), await in_time.unreadable("a")) == ("empty", None)
    late: Any = bounded(Reading(), Deadline(StubParent().watched, PASSED))
    assert await late.unreadable("") is None
