"""An enrolled request's completion line: one, before the last response, whatever way the request ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from enrolled_runs import (
    ABORT,
    BROKEN,
    POLICY,
    STOP,
    Json,
    Sglang,
    StubService,
    answer,
    drained,
    replay,
    run_of,
)
from fastapi import HTTPException
from sglang_power.errors import RewardError, UnsupportedError


@pytest.mark.parametrize("n", [1, 2])
async def test_the_line_is_written_before_the_only_response(n: int) -> None:
    service = StubService()
    answers = [answer("ab", STOP) for _ in range(n)]
    (response,) = await drained(
        service, run_of(service, replay(answers if n > 1 else answers[0]), params={"n": n})
    )
    assert service.order == ["enrolment", "completion", "shadows", "response"]
    (line,) = service.lines
    assert (line.outcome, line.reason, line.sampler) == ("ok", None, "none")
    assert (line.tokens.decoded, line.tokens.prefilled) == (2 * n, 5 * n)
    exposures = {one["meta_info"]["power"]["exposure_id"] for one in (response if n > 1 else [response])}
    assert exposures == {line.exposure_id}


async def test_a_request_without_sampling_parameters_has_one_answer() -> None:
    service = StubService()
    assert len(await drained(service, run_of(service, replay(answer("ab", STOP)), params=None))) == 1
    assert [line.outcome for line in service.lines] == ["ok"]


async def test_a_stream_of_two_answers_is_complete_with_the_last_of_both() -> None:
    service = StubService()
    chunks = [
        answer("a", index=0),
        answer("a", STOP, index=1),
        answer("ab", index=0),
        answer("abc", STOP, index=0),
    ]
    await drained(service, run_of(service, replay(*chunks), params={"n": 2}, stream=True))
    assert service.order == ["enrolment", *["response"] * 3, "completion", "shadows", "response"]
    assert service.lines[0].tokens.decoded == 4


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
    service = StubService()
    await drained(service, run_of(service, replay(last)))
    assert [(line.outcome, line.reason) for line in service.lines] == [(outcome, reason)]
    assert "shadows" not in service.order


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
    service = StubService()
    with pytest.raises(type(error)):
        await drained(service, run_of(service, replay(error)))
    assert [line.outcome for line in service.lines] == [outcome]
    assert service.lines[0].reason in (None, type(error).__name__), "no text of the request's"


async def test_a_client_that_leaves_in_mid_stream_is_a_loss_of_the_arm() -> None:
    service = StubService()
    responses = run_of(
        service, replay(answer("a", index=0), answer("ab", STOP, index=0)), stream=True
    ).responses()
    await anext(responses)
    await responses.aclose()  # type: ignore[attr-defined]  # an async generator in fact
    assert [(line.outcome, line.tokens.decoded) for line in service.lines] == [("disconnect", 1)]


async def test_what_was_decoded_before_an_abort_stays_counted() -> None:
    """SGLang's own note of an abort knows no tokens."""
    service, gone = StubService(), {"text": "", "meta_info": {"finish_reason": ABORT}, "index": 0}
    await drained(service, run_of(service, replay(answer("abc", index=0), gone), stream=True))
    assert [(line.outcome, line.tokens.decoded) for line in service.lines] == [("abort", 3)]


async def test_an_answer_that_never_finishes_is_an_error() -> None:
    service = StubService()
    await drained(service, run_of(service, replay(answer("a")), stream=True))
    assert [(line.outcome, line.reason) for line in service.lines] == [("error", "no answer was finished")]


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (HTTPException(502, "reward"), "HTTPException"),
        (answer("", BROKEN), "HTTPException"),
        (RewardError("r", "no score", "Look at it"), "RewardError"),
        (UnsupportedError("max_total_tokens", 9, "too few", "Raise it"), "UnsupportedError"),
        (ValueError("The child is longer than the context"), "ValueError"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_the_default_answers_for_an_arm_that_fails(failure: Any, reason: str, stream: bool) -> None:
    """Also for one that only finds out as it runs that it cannot serve the request."""
    service, calls = StubService(), []

    async def original(*_: object) -> AsyncIterator[Any]:
        calls.append(1)
        if len(calls) > 1:
            yield answer("default", STOP)
        elif isinstance(failure, Exception):
            raise failure
        else:
            yield failure

    (response,) = await drained(service, run_of(service, original, stream=stream, on_error="default_sampler"))
    assert response["text"] == "default"
    assert [(line.outcome, line.reason) for line in service.lines] == [("fallback", reason)]


@pytest.mark.parametrize(
    "error", [ValueError("too long for the model"), UnsupportedError("n", 9, "no", "Less")]
)
async def test_what_the_default_refuses_as_well_is_the_clients_fault(error: Exception) -> None:
    service = StubService()
    with pytest.raises(ValueError, match=str(error)):
        await drained(service, run_of(service, replay(error), on_error="default_sampler"))
    assert [(line.outcome, line.reason) for line in service.lines] == [("error", type(error).__name__)]


async def test_nobody_answers_a_client_that_has_gone() -> None:
    service, sglang = (
        StubService(),
        Sglang(ValueError("Request 1 is disconnected from the client side")),
    )
    with pytest.raises(ValueError, match="disconnected"):
        await drained(service, run_of(service, sglang, sampler=POLICY, on_error="default_sampler"))
    assert [line.outcome for line in service.lines] == ["disconnect"]
    assert len(sglang.asked) == 1


@pytest.mark.parametrize("n", [1, 2])
async def test_what_a_failed_arm_has_spent_counts_beside_the_answer_that_was_served(n: int) -> None:
    """The arm prefills the prompt of two samples, 5 tokens, before they fail; a single one does not."""
    service, sglang = StubService(), Sglang(HTTPException(503, "full"))
    run = run_of(service, sglang, params={"n": n}, sampler=POLICY, on_error="default_sampler")
    await drained(service, run)
    (line,) = service.lines
    assert line.outcome == "fallback"
    assert line.tokens.decoded == n * len("plain")
    assert line.tokens.prefilled == 5 * n + (5 if n > 1 else 0)


@pytest.mark.parametrize("n", [1, 2])
async def test_all_samples_of_a_policy_count(n: int) -> None:
    service = StubService()
    await drained(service, run_of(service, Sglang(), params={"n": n}, sampler=POLICY))
    (line,) = service.lines
    assert (line.outcome, line.sampler) == ("ok", "top_n_sigma")
    assert (line.tokens.decoded, line.tokens.prefilled) == (n * len("policy"), 5 * n + (5 if n > 1 else 0))


@pytest.mark.parametrize("first", [[], [answer("a", index=0)]])
async def test_nothing_falls_back_after_the_first_piece_or_where_errors_are_wanted(first: list[Json]) -> None:
    service, on_error = StubService(), "default_sampler" if first else "error"
    with pytest.raises(HTTPException):
        await drained(
            service, run_of(service, replay(*first, HTTPException(500, "x")), stream=True, on_error=on_error)
        )
    assert [line.outcome for line in service.lines] == ["error"]
