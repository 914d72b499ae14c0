"""An enrolled request's completion line: one, before the last response, whatever way the request ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import HTTPException
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang_power.experiments.catalogue import Loaded, config_hash
from sglang_power.experiments.enrolling import Enrolled, Facts
from sglang_power.experiments.model import Experiment
from sglang_power.experiments.records import Completion
from sglang_power.experiments.state import State
from sglang_power.serving.config import ServerConfig
from sglang_power.sglang_host.enrolled import EnrolledRun
from sglang_power.sglang_host.orchestrator import Host
from sglang_power.sglang_host.plan import PlainPlan

Json = dict[str, Any]
Original = Callable[..., AsyncIterator[Any]]

DEFAULT = PlainPlan(fallback_reason="the default preset does not fit")
"""Another plan than the arm's, so that one can answer for the other."""


def answer(text: str = "x", finish: Json | None = None, **more: Any) -> Json:
    """SGLang's response."""
    meta = {"finish_reason": finish, "prompt_tokens": 9, "cached_tokens": 4, "completion_tokens": len(text)}
    meta |= more.pop("meta", {})
    return {"text": text, "meta_info": meta, **more}


STOP, ABORT = {"type": "stop"}, {"type": "abort"}
BROKEN = {"type": "abort", "status_code": 503, "message": "busy"}

ONE: Json = {"n": 1}


class Desk:
    """What a run touches of a desk; notes the order of things."""

    def __init__(self) -> None:
        self.settings = SimpleNamespace(log_text=False)
        self.shadows = SimpleNamespace(start=lambda *_: self.order.append("shadows"))
        self.order: list[str] = []
        self.lines: list[Completion] = []

    def enrolled(self, *_: object) -> None:
        self.order.append("enrolment")

    def completed(self, _: Experiment, line: Completion) -> None:
        self.order.append("completion")
        self.lines.append(line)


def experiment(on_error: str) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "e",
            "owner": "o",
            "hypothesis": "h",
            "unit": {"field": "user"},
            "arms": (
                {"name": "plain", "sampler": {"sampler": "none"}, "weight": 5000, "control": "plain"},
                {"name": "power", "sampler": {"sampler": "power"}, "weight": 5000},
            ),
            "metrics": {"m": {"source": "outcome", "outcomes": ("error",)}},
            "primary": {"metric": "m", "min_effect": 0.0},
            "on_error": on_error,
        }
    )


def run_of(
    desk: Desk,
    original: Original,
    *,
    params: Json | None = ONE,
    stream: bool = False,
    on_error: str = "error",
) -> EnrolledRun:
    """A run whose arm is answered by `original`."""
    obj = GenerateReqInput(text="prompt", sampling_params=params)
    manager = SimpleNamespace(server_args=SimpleNamespace(incremental_streaming_output=False))
    each = experiment(on_error)
    place = Enrolled(Loaded(each, config_hash(each), State()), each.arm("power"), "unit")
    facts = Facts("m", "generate", stream, 8, {}, "u", None)
    host = Host(manager, original, obj, None, ServerConfig())
    return EnrolledRun(desk, host, facts, None, [DEFAULT], place, PlainPlan())  # type: ignore[arg-type]


def replay(*responses: Any) -> Original:
    """A host that answers so, and raises what is an exception."""

    async def original(*_: object) -> AsyncIterator[Any]:
        for one in responses:
            if isinstance(one, BaseException):
                raise one
            yield one

    return original


async def drained(desk: Desk, run: EnrolledRun) -> list[Any]:
    """All responses; the desk notes when each was handed over."""
    found = []
    async for response in run.responses():
        desk.order.append("response")
        found.append(response)
    return found


@pytest.mark.parametrize("n", [1, 2])
async def test_the_line_is_written_before_the_only_response(n: int) -> None:
    desk = Desk()
    answers = [answer("ab", STOP) for _ in range(n)]
    (response,) = await drained(desk, run_of(desk, replay(answers if n > 1 else answers[0]), params={"n": n}))
    assert desk.order == ["enrolment", "completion", "shadows", "response"]
    (line,) = desk.lines
    assert (line.outcome, line.reason, line.sampler) == ("ok", None, "none")
    assert (line.tokens.decoded, line.tokens.prefilled) == (2 * n, 5 * n)
    exposures = {one["meta_info"]["power"]["exposure_id"] for one in (response if n > 1 else [response])}
    assert exposures == {line.exposure_id}


async def test_a_request_without_sampling_parameters_has_one_answer() -> None:
    desk = Desk()
    assert len(await drained(desk, run_of(desk, replay(answer("ab", STOP)), params=None))) == 1
    assert [line.outcome for line in desk.lines] == ["ok"]


async def test_a_stream_of_two_answers_is_complete_with_the_last_of_both() -> None:
    desk = Desk()
    chunks = [
        answer("a", index=0),
        answer("a", STOP, index=1),
        answer("ab", index=0),
        answer("abc", STOP, index=0),
    ]
    await drained(desk, run_of(desk, replay(*chunks), params={"n": 2}, stream=True))
    assert desk.order == ["enrolment", *["response"] * 3, "completion", "shadows", "response"]
    assert desk.lines[0].tokens.decoded == 4


@pytest.mark.parametrize(
    ("outcome", "reason", "last"),
    [
        ("abort", None, answer("a", ABORT)),
        ("error", "status 503", answer("", BROKEN)),
        (
            "deadline",
            None,
            answer("a", STOP, meta={"power": {"sampler": "power", "stopped_by": "deadline_ms"}}),
        ),
    ],
)
async def test_how_an_answer_ended_is_how_the_request_did(
    outcome: str, reason: str | None, last: Json
) -> None:
    desk = Desk()
    await drained(desk, run_of(desk, replay(last)))
    assert [(line.outcome, line.reason) for line in desk.lines] == [(outcome, reason)]
    assert "shadows" not in desk.order


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        ("error", HTTPException(503, "busy")),
        ("error", ValueError("The input is longer than the context")),
        ("disconnect", ValueError("Request 1 is disconnected from the client side")),
        ("disconnect", asyncio.CancelledError()),
    ],
)
async def test_an_error_is_noted_and_passed_on(outcome: str, error: BaseException) -> None:
    desk = Desk()
    with pytest.raises(type(error)):
        await drained(desk, run_of(desk, replay(error)))
    assert [line.outcome for line in desk.lines] == [outcome]
    assert desk.lines[0].reason in (None, type(error).__name__), "no text of the request's"


async def test_a_client_that_leaves_in_mid_stream_is_a_loss_of_the_arm() -> None:
    desk = Desk()
    responses = run_of(
        desk, replay(answer("a", index=0), answer("ab", STOP, index=0)), stream=True
    ).responses()
    await anext(responses)
    await responses.aclose()  # type: ignore[attr-defined]  # an async generator in fact
    assert [(line.outcome, line.tokens.decoded) for line in desk.lines] == [("disconnect", 1)]


async def test_an_answer_that_never_finishes_is_an_error() -> None:
    desk = Desk()
    await drained(desk, run_of(desk, replay(answer("a")), stream=True))
    assert [(line.outcome, line.reason) for line in desk.lines] == [("error", "no answer was finished")]


@pytest.mark.parametrize("failure", [HTTPException(502, "reward"), answer("", BROKEN)])
async def test_the_default_answers_for_an_arm_that_fails(failure: Any) -> None:
    desk, calls = Desk(), []

    async def original(*_: object) -> AsyncIterator[Any]:
        calls.append(1)
        if len(calls) > 1:
            yield answer("default", STOP)
        elif isinstance(failure, Exception):
            raise failure
        else:
            yield failure

    (response,) = await drained(desk, run_of(desk, original, on_error="default_sampler"))
    assert response["text"] == "default"
    assert [(line.outcome, line.reason) for line in desk.lines] == [("fallback", "HTTPException")]


@pytest.mark.parametrize("first", [[], [answer("a", index=0)]])
async def test_nothing_falls_back_after_the_first_piece_or_where_errors_are_wanted(first: list[Json]) -> None:
    desk, on_error = Desk(), "default_sampler" if first else "error"
    with pytest.raises(HTTPException):
        await drained(
            desk, run_of(desk, replay(*first, HTTPException(500, "x")), stream=True, on_error=on_error)
        )
    assert [line.outcome for line in desk.lines] == ["error"]
