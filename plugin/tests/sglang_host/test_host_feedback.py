"""The feedback route in an application with SGLang's own check of API keys: each key opens its own routes."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sglang.srt.utils import auth
from sglang_power.experiments.feedback import KEY_VARIABLE
from sglang_power.experiments.records import Feedback
from sglang_power.routes import FEEDBACK_ROUTE
from sglang_power.sglang_host.experiments import feedback_route
from sglang_power.sglang_host.experiments.feedback_route import add_feedback_route

BODY = {"exposure_id": "0" * 12 + "4" + "0" * 3 + "8" + "0" * 15, "metric": "good", "value": 1.0}


class StubService:
    """What the route touches of a service."""

    def __init__(self) -> None:
        self.settings = SimpleNamespace(max_feedback_bytes=200)
        self.counters = SimpleNamespace(feedback=lambda result: self.counted.append(result))
        self.counted: list[str] = []
        self.lines: list[Feedback] = []

    def write(self, line: Feedback) -> None:
        self.lines.append(line)


@pytest.fixture
def service() -> StubService:
    return StubService()


@pytest.fixture
def client(service: StubService, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """SGLang's middleware with a server key, the route with its own."""
    original = auth.decide_request_auth
    monkeypatch.setattr(
        auth, "decide_request_auth", lambda **kwargs: feedback_route.request_auth(original, **kwargs)
    )
    monkeypatch.setenv(KEY_VARIABLE, "feedback key")
    app = FastAPI()
    app.add_api_route("/generate", lambda: {"text": ""}, methods=["POST"])
    add_feedback_route(app, service)  # type: ignore[arg-type]
    auth.add_api_key_middleware(app, api_key="server key", admin_api_key=None)
    with TestClient(app) as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.filterwarnings("ignore:ORJSONResponse is deprecated")  # SGLang's refusal
def test_each_key_opens_its_own_routes(client: TestClient, service: StubService) -> None:
    assert client.post(FEEDBACK_ROUTE, json=BODY, headers=bearer("feedback key")).status_code == 202
    assert client.post(FEEDBACK_ROUTE, json=BODY, headers=bearer("server key")).status_code == 401
    assert client.post("/generate", headers=bearer("feedback key")).status_code == 401
    assert client.post("/generate", headers=bearer("server key")).status_code == 200
    assert [(line.metric, line.value) for line in service.lines] == [("good", 1.0)]
    assert service.counted == ["accepted", "unauthorised"]


def test_without_a_key_the_route_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    app = FastAPI()
    add_feedback_route(app, StubService())  # type: ignore[arg-type]
    with TestClient(app) as client:
        assert client.post(FEEDBACK_ROUTE, json=BODY).status_code == 404


@pytest.mark.parametrize(
    ("status", "counted", "sent"),
    [(413, "too_large", {"content": b" " * 201}), (400, "malformed", {"json": {**BODY, "value": "x"}})],
)
def test_what_is_refused_is_counted_and_not_written(
    client: TestClient, service: StubService, status: int, counted: str, sent: dict[str, Any]
) -> None:
    assert client.post(FEEDBACK_ROUTE, headers=bearer("feedback key"), **sent).status_code == status
    assert (service.counted, service.lines) == ([counted], [])


async def test_no_more_of_a_long_body_is_read_than_is_allowed(
    monkeypatch: pytest.MonkeyPatch, service: StubService
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "feedback key")
    app = FastAPI()
    add_feedback_route(app, service)  # type: ignore[arg-type]
    read, sent = 0, list[Any]()

    async def receive() -> Any:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": b" " * 100, "more_body": read < 50}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", b"Bearer feedback key")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": FEEDBACK_ROUTE,
        "headers": headers,
        "query_string": b"",
    }
    await app(scope, receive, send)
    assert sent[0]["status"] == 413
    assert read == 3, "200 bytes are allowed, 100 come at a time"
