"""What is sent to a server, and what is read of its answers. Error rate 0."""

from __future__ import annotations

import math
from typing import Any

import httpx
import openai
import pytest
from eval_answers import ScriptedApi, arm, completion
from sglang_power.errors import ConfigError, HostError
from sglang_power.evaluation.asking import (
    Answer,
    Asker,
    RefusedError,
    Route,
    UnansweredError,
    entropy,
)

BOUND = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
"""Entropy of rows whose likely tokens are `TOP`, with the rest as one token."""


async def asked(
    patch: pytest.MonkeyPatch, name: str, server: ScriptedApi | None = None, **route: Any
) -> tuple[Answer, dict[str, Any]]:
    """An answer, and the body that asked for it."""
    server = server or ScriptedApi(patch)
    async with openai.AsyncOpenAI(base_url="http://fake/v1", api_key="k", max_retries=0) as client:
        fields: dict[str, Any] = {"model": "m", "api": "completions", "max_tokens": 16, **route}
        answer = await Asker(client, Route(**fields)).ask("a prompt", arm(name), 77)
    return answer, server.asked[-1]


async def test_samplers_are_asked_strictly_with_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    answer, body = await asked(monkeypatch, "power", stop=("\n",))
    assert body["custom_params"] == {"sampler": "power", "seed": 77, "strict": True, "return_trace": True}
    assert (body["prompt"], body["max_tokens"], body["stop"], body["logprobs"]) == (
        "a prompt",
        16,
        ["\n"],
        20,
    )
    assert (body["temperature"], body["top_p"], body["top_k"], body["min_p"]) == (1.0, 1.0, -1, 0.0)
    assert (answer.returned, answer.decoded, answer.prefilled, answer.depth) == (4, 40, 9, 44)
    assert answer.log_p == -2.0
    assert answer.blocks == ((1, 1), (2, 1))
    assert answer.entropy == pytest.approx(BOUND)
    assert answer.report is not None
    assert "trace" not in answer.report
    assert answer.report["law"] == "policy"


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("plain", {"sampler": "temperature", "value": 1.0}),
        ("lowtemp", {"sampler": "temperature", "value": 0.25}),
        ("greedy", {"sampler": "greedy"}),
    ],
)
async def test_baselines_bring_statistics(
    monkeypatch: pytest.MonkeyPatch, name: str, params: dict[str, Any]
) -> None:
    answer, body = await asked(monkeypatch, name)
    assert body["custom_params"] == {**params, "seed": 77, "strict": True, "return_statistics": True}
    assert answer.log_p == pytest.approx(-1.0), "of the statistics, at temperature 1"
    assert (answer.decoded, answer.prefilled, answer.depth) == (4, 5, 5)
    assert answer.report is not None
    assert "statistics" not in answer.report


@pytest.mark.parametrize(("name", "temperature"), [("plain", 1.0), ("lowtemp", 0.25), ("greedy", 0.0)])
async def test_without_the_plugin_baselines_are_sglangs_own(
    monkeypatch: pytest.MonkeyPatch, name: str, temperature: float
) -> None:
    answer, body = await asked(
        monkeypatch, name, ScriptedApi(monkeypatch, has_plugin=False), has_plugin=False
    )
    assert "custom_params" not in body
    assert (body["temperature"], body["seed"], body["top_k"]) == (temperature, 77, -1)
    assert answer.report is None
    assert answer.log_p == (None if name == "lowtemp" else -2.0), "SGLang's are at the request's temperature"


async def test_chats_are_read_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    chat, body = await asked(monkeypatch, "power", api="chat")
    assert body["messages"] == [{"role": "user", "content": "a prompt"}]
    assert (body["logprobs"], body["top_logprobs"]) == (True, 20)
    text, _ = await asked(monkeypatch, "power")
    assert chat.entropy == text.entropy
    assert (chat.text, chat.log_p, chat.returned) == (text.text, text.log_p, text.returned)


async def test_without_alternatives_there_is_no_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ScriptedApi(monkeypatch)
    answer_without = completion("x", {"sampler": "power", "log_p": -2.0}, logprobs=None)
    server.fault = lambda *_: httpx.Response(200, json=answer_without)
    server.asked.append({})
    answer, _ = await asked(monkeypatch, "power", server, alternatives=0)
    assert (answer.entropy, answer.log_p) == (None, -2.0)


async def test_another_sampler_than_was_asked_for_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ScriptedApi(monkeypatch)
    for report, problem in (({"sampler": "none"}, "ran 'none'"), (None, "says of none")):
        answer = completion("x", report)
        server.fault = lambda *_, answer=answer: httpx.Response(200, json=answer)
        with pytest.raises(HostError, match=problem):
            await asked(monkeypatch, "power", server)


def broken(*_: Any) -> httpx.Response:
    raise httpx.ConnectError("refused")


def slow(*_: Any) -> httpx.Response:
    raise httpx.ReadTimeout("slow")


FAULTS: list[tuple[Any, type[Exception], str]] = [
    (lambda *_: httpx.Response(400, json={"message": "steps=0: too few"}), RefusedError, "steps=0: too few"),
    (lambda *_: httpx.Response(422, json={"error": {"message": "no"}}), RefusedError, "^no$"),
    (lambda *_: httpx.Response(401), ConfigError, "--api-key"),
    (lambda *_: httpx.Response(503, json={"message": "busy"}), UnansweredError, "HTTP 503: busy"),
    (slow, UnansweredError, "no answer in time"),
    (broken, HostError, "does not answer any more: refused"),
]


@pytest.mark.parametrize(("fault", "kind", "problem"), FAULTS, ids=[fault[2] for fault in FAULTS])
async def test_faults_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, fault: Any, kind: type[Exception], problem: str
) -> None:
    server = ScriptedApi(monkeypatch)
    server.fault = fault
    with pytest.raises(kind, match=problem):
        await asked(monkeypatch, "power", server)


def test_the_entropy_of_a_row_is_a_lower_bound() -> None:
    p = [0.4, 0.3, 0.2, 0.06, 0.04]
    whole = -math.fsum(x * math.log(x) for x in p)
    bounds = [entropy([math.log(x) for x in p[:shown]]) for shown in range(1, 6)]
    assert bounds == sorted(bounds)
    assert bounds[3] == pytest.approx(whole), "one token that is not shown is the rest"
    assert bounds[-1] == pytest.approx(whole)
    assert entropy([0.0]) == 0.0
    assert entropy([1e-9]) == pytest.approx(0.0, abs=1e-6), "rounding may leave more than 1"
