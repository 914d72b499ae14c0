"""The client: the probe, retries, what HTTP failures become, and that backends share no fate."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from scripted_server import ScriptedServer, answer
from sglang_power.errors import HostError, OverloadedError, RequestError, UnsupportedError
from sglang_power.frontend import client
from sglang_power.frontend.client import ATTEMPTS, Client, Clients
from sglang_power.routes import STATUS_ROUTE

BODY: dict[str, Any] = {"text": "x", "sampling_params": {"max_new_tokens": 1}}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)


def test_a_server_without_the_plugin_is_refused() -> None:
    with pytest.raises(HostError, match="without sglang-power"):
        ScriptedServer(plugin=False).client()


def test_the_router_is_told_from_a_server_without_the_plugin() -> None:
    with pytest.raises(HostError, match=r"is SGLang's router.*Give a worker's URL"):
        ScriptedServer(plugin=False, info={"router_manager": True}).client()


def test_a_url_may_be_that_of_openai_clients() -> None:
    fake = ScriptedServer()
    assert fake.client("http://fake/v1").status == {"served_model": "fake"}
    assert fake.requests == [(STATUS_ROUTE, None)]


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


def test_the_probe_is_given_up_some_time_and_a_generation_is_not() -> None:
    fake = ScriptedServer(lambda _: answer([65]))
    fake.client().generate(BODY)
    probe, generation = fake.timeouts
    assert probe["read"] is not None
    assert (generation["read"], generation["connect"]) == (None, probe["connect"])


# --- one client per backend ---------------------------------------------------------------------------


@dataclass(eq=False)
class Backend:
    base_url: str = "http://fake"
    api_key: str | None = None
    verify: str | None = None


class Probed:
    """In place of `Client`: each probe of a backend whose URL says so waits for the test."""

    def __init__(self, outcomes: Sequence[Exception | None] = ()) -> None:
        self.outcomes = list(outcomes)
        self.asked, self.answered, self.clients = threading.Event(), threading.Event(), 0

    def __call__(self, url: str, *_: object) -> Any:
        self.clients += 1
        if "hung" in url:
            self.asked.set()
            assert self.answered.wait(60)
        if self.outcomes and (failure := self.outcomes.pop(0)):
            raise failure
        return SimpleNamespace(url=url, close=lambda: None)


def test_a_server_that_hangs_blocks_no_other_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    probed, clients = Probed(), Clients()
    monkeypatch.setattr(client, "Client", probed)
    hung, fine = Backend("http://hung"), Backend()
    with ThreadPoolExecutor(3) as pool:
        try:
            waiting = [pool.submit(clients.of, hung) for _ in range(2)]
            assert probed.asked.wait(60)
            assert pool.submit(clients.of, fine).result(60) is clients.of(fine)
        finally:
            probed.answered.set()
        assert waiting[0].result(60) is waiting[1].result(60)
    assert probed.clients == 2


def test_a_failed_probe_fails_all_who_wait_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = threading.Event()

    class Watched(Future[Any]):
        def result(self, timeout: float | None = None) -> Any:
            waiting.set()
            return super().result(timeout)

    probed, clients, hung = Probed([HostError("gone")]), Clients(), Backend("http://hung")
    monkeypatch.setattr(client, "Client", probed)
    monkeypatch.setattr(client, "Future", Watched)
    with ThreadPoolExecutor(2) as pool:
        try:
            first = pool.submit(clients.of, hung)
            assert probed.asked.wait(60)
            second = pool.submit(clients.of, hung)
            assert waiting.wait(60)
        finally:
            probed.answered.set()
        assert [str(one.exception(60)) for one in (first, second)] == ["gone", "gone"]
    assert probed.clients == 1
    assert clients.of(hung) is clients.of(hung)
    assert probed.clients == 2
