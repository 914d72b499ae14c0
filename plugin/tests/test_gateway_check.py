"""`sglang-power check` at URLs that are no server with the plugin: routers, keys, other gateways. No network.

The router's answers are those of sglang-router 0.3.2; `make test-router` asks the real one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from sglang_power.check_cli import describe
from sglang_power.cli import main
from sglang_power.gateways import ROUTED_DEFAULT, server_of

ROUTER: dict[str, tuple[int, str]] = {
    "/get_server_info": (200, '{"router_manager":true,"routers_count":1,"workers_count":2}'),
    "/workers": (
        200,
        '{"workers":[{"id":"a","url":"http://w1:1"},{"id":"b","url":"http://w2:2"}],"total":2}',
    ),
}
STATUS: dict[str, Any] = {
    "sglang": "0.5.23",
    "served_model": "m",
    "processes": [{"role": "tokenizer", "pid": 1, "version": "0.1.0", "hooks": {"target": "live"}}],
    "refused": [],
    "limits": {},
    "presets": {},
    "default": None,
    "experiments": {},
}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, str]]:
    """Path -> status and body of what stands at every URL; all other paths are 404."""
    given: dict[str, tuple[int, str]] = {}

    class Client(httpx.Client):
        def __init__(self, **settings: Any) -> None:
            super().__init__(transport=httpx.MockTransport(self._answer), **settings)

        def _answer(self, request: httpx.Request) -> httpx.Response:
            status, text = given.get(request.url.path, (404, ""))
            return httpx.Response(status, text=text)

    monkeypatch.setattr(httpx, "Client", Client)
    monkeypatch.delenv("SGLANG_API_KEY", raising=False)
    return given


def check(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    """Exit status and standard error of the command; it says nothing else where there is no report."""
    status = main(["check", "--url", "http://here:3", *options])
    told = capsys.readouterr()
    assert not told.out
    return status, told.err


@pytest.mark.parametrize(
    "url",
    ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/", "http://h:1//"],
)
def test_the_base_of_a_servers_routes(url: str) -> None:
    assert server_of(url) == "http://h:1"
    assert server_of("http://h/llm/v1") == "http://h/llm"
    assert server_of("http://h/v10") == "http://h/v10"


def test_the_router_is_recognised_and_its_workers_are_named(
    answers: dict[str, tuple[int, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    answers |= ROUTER
    status, told = check(capsys)
    assert status == 2, "nothing is known of the plugin"
    assert "http://here:3 is SGLang's router" in told
    assert "without the plugin" not in told
    assert "  sglang-power check --url http://w1:1\n  sglang-power check --url http://w2:2\n" in told
    for route in ("/v1/chat/completions", "/v1/completions", "/generate", "/sglang_power/feedback"):
        assert f"\n  {route} " in told
    assert 'metadata {"sglang_power": "<JSON>"}' in told


@pytest.mark.parametrize(
    ("workers", "said"),
    [
        ((401, ""), "wants a key: give it with --api-key"),
        ((200, '{"workers":[]}'), "it has none at present"),
        ((200, "no JSON"), "it has none at present"),
        ((200, '{"workers":[1, {"id": "a"}]}'), "it has none at present"),
    ],
)
def test_a_router_that_names_no_workers(
    workers: tuple[int, str],
    said: str,
    answers: dict[str, tuple[int, str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers |= {**ROUTER, "/workers": workers}
    status, told = check(capsys)
    assert status == 2
    assert said in told
    assert "is SGLang's router" in told


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_wants_its_key_says_how_to_give_it(
    status: int, answers: dict[str, tuple[int, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    answers["/sglang_power/status"] = (status, '{"error": "Unauthorized"}')
    assert check(capsys) == (2, "http://here:3 wants a key: give it with --api-key, or in SGLANG_API_KEY\n")
    assert "refuses this key: give its own with --api-key" in check(capsys, "--api-key", "x")[1]


@pytest.mark.parametrize(
    ("given", "status", "said"),
    [
        ({"/get_server_info": (200, '{"version": "0.5.23"}')}, 1, "runs SGLang 0.5.23 without the plugin"),
        ({}, 2, "is no SGLang server"),
        ({"/get_server_info": (200, "<html>")}, 2, "is no SGLang server"),
        ({"/get_server_info": (500, '{"version": "0.5.23"}')}, 2, "is no SGLang server"),
        ({"/sglang_power/status": (200, "<html>")}, 2, "answers /sglang_power/status with something else"),
        ({"/sglang_power/status": (503, "busy")}, 2, "answered 503: busy"),
    ],
    ids=["sglang", "nothing", "page", "failing", "a page for everything", "busy"],
)
def test_other_servers_and_gateways(
    given: Mapping[str, tuple[int, str]],
    status: int,
    said: str,
    answers: dict[str, tuple[int, str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers |= given
    code, told = check(capsys)
    assert code == status
    assert said in told


def test_a_url_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    for url in ("http://[::1", "host:30000"):
        assert main(["check", "--url", url]) == 2
        assert "does not answer" in capsys.readouterr().err


@pytest.mark.parametrize(("default", "told"), [("chat", True), (None, False)])
def test_a_default_says_what_it_is_behind_the_router(default: str | None, told: bool) -> None:
    assert (f"  {ROUTED_DEFAULT}" in describe({**STATUS, "default": default})) == told
