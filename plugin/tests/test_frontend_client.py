"""The client: the probe, retries, and what HTTP failures become."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from scripted_server import ScriptedServer, answer
from sglang_power.errors import HostError, OverloadedError, RequestError, UnsupportedError
from sglang_power.frontend.client import ATTEMPTS, Client

BODY: dict[str, Any] = {"text": "x", "sampling_params": {"max_new_tokens": 1}}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)


def test_a_server_without_the_plugin_is_refused() -> None:
    with pytest.raises(HostError, match="without sglang-power"):
        ScriptedServer(plugin=False).client()


def test_the_key_goes_with_every_request() -> None:
    fake = ScriptedServer(lambda _: answer([1]))
    fake.client(api_key="secret").generate(BODY)
    assert [headers["authorization"] for headers in fake.headers] == ["Bearer secret"] * 2


@pytest.mark.parametrize(("status", "error"), [(400, RequestError), (500, HostError), (503, OverloadedError)])
def test_failures_are_typed_and_say_what_the_server_said(status: int, error: type[Exception]) -> None:
    with pytest.raises(error, match="alpha is too small"):
        ScriptedServer(lambda _: (status, "alpha is too small")).client().generate(BODY)


def test_an_overloaded_server_is_asked_again_and_a_wrong_request_is_not() -> None:
    replies: list[Any] = [(503, "busy"), (503, "busy"), answer([65])]
    busy = ScriptedServer(lambda _: replies.pop(0))
    assert busy.client().generate(BODY)["text"] == "A"
    wrong = ScriptedServer(lambda _: (400, "wrong"))
    with pytest.raises(RequestError):
        wrong.client().generate(BODY)
    assert (len(busy.generated()), len(wrong.generated())) == (3, 1)


def test_a_server_that_is_not_there_is_an_error_after_the_last_attempt() -> None:
    attempts = []

    def refuse(request: httpx.Request) -> httpx.Response:
        attempts.append(request)
        raise httpx.ConnectError("refused")

    with pytest.raises(HostError, match="cannot be reached"):
        Client("http://nowhere", transport=httpx.MockTransport(refuse))
    assert len(attempts) == ATTEMPTS


def test_an_answer_that_the_server_gave_up_is_an_error() -> None:
    aborted = answer([], {"type": "abort", "message": "evicted"})
    with pytest.raises(HostError, match="evicted"):
        ScriptedServer(lambda _: aborted).client().generate(BODY)


def test_a_stream_that_reports_an_error_raises_it() -> None:
    fake = ScriptedServer(lambda _: [{"error": {"message": "alpha is too small"}}])
    with pytest.raises(RequestError, match="alpha is too small"):
        list(fake.client().stream(BODY))


def test_a_tokenizer_that_writes_blanks_in_front_of_texts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripted_server.text_of", lambda ids: " ".join(map(chr, ids)))
    with pytest.raises(UnsupportedError, match="stand alone"):
        ScriptedServer().client().encode(["ab"])
    monkeypatch.undo()
    assert ScriptedServer().client().encode(["ab", "é"]) == [[*b"ab"], [*"é".encode()]]
