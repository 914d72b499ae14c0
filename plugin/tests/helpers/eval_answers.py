"""Answers, runs and a scripted OpenAI server for tests of the evaluation. No network."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
import openai
import pytest
from sglang_power.evaluation import session
from sglang_power.evaluation.arms import BASELINES, Arm
from sglang_power.evaluation.records import Kept, Run
from sglang_power.gateways import INFO_ROUTE
from sglang_power.routes import STATUS_ROUTE

Json = dict[str, Any]

STATUS: Json = {
    "sglang": "0.5.23",
    "served_model": "m",
    "processes": [{"version": "0.1.0", "hooks": {}}],
    "refused": [],
}
TOP = {"a": math.log(0.5), "b": math.log(0.25)}
"""Alternatives of every token: the rest, 0.25, is not shown."""


def arm(name: str, samples: int = 1, **params: Any) -> Arm:
    """An arm that is named after its sampler."""
    sampler = name.split("[")[0]
    sent = BASELINES.get(sampler, {"sampler": sampler})
    return Arm(name=name, sampler=sampler, params={**sent, **params}, samples=samples)


def run(arms: Sequence[Arm], items: Sequence[str], **changes: Any) -> Run:
    """A run of numbers as answers."""
    fields: Json = {
        "task": "sums",
        "model": "m",
        "api": "completions",
        "max_tokens": 16,
        "stop": (),
        "seed": 0,
        "shots": 0,
        "has_plugin": True,
        "alternatives": 20,
        "items": dict.fromkeys(items, "digest"),
        "kinds": dict.fromkeys(items, "number"),
        "arms": tuple(arms),
        "left_out": 0,
        "concurrency": 2,
        "versions": {"sglang": "0.5.23"},
        "hardware": None,
        "command": "sglang-power eval",
    }
    return Run(**{**fields, **changes})


def kept(item: str, arm: str, sample: int = 0, correct: bool | None = True, **changes: Any) -> Kept:
    """An answer of ten tokens."""
    fields: Json = {
        "item": item,
        "arm": arm,
        "sample": sample,
        "seed": 1,
        "text": "5",
        "finish_reason": "stop",
        "value": "5" if correct else "6",
        "correct": correct,
        "reason": "",
        "returned": 10,
        "decoded": 10,
        "prefilled": 3,
        "depth": 11,
        "log_p": -5.0,
        "entropy": 0.5,
        "blocks": (),
        "seconds": 0.1,
        "power": None,
    }
    return Kept(**{**fields, **changes})


def by_key(answers: Sequence[Kept]) -> dict[Any, Kept]:
    """Answers by what they answer."""
    return {answer.key: answer for answer in answers}


def completion(text: str, report: Json | None, tokens: int = 4, **choice: Any) -> Json:
    """A response of /v1/completions."""
    logprobs = {
        "tokens": ["x"] * tokens,
        "token_logprobs": [-0.5] * tokens,
        "top_logprobs": [TOP] * tokens,
        "text_offset": [0] * tokens,
    }
    return {
        "id": "1",
        "object": "text_completion",
        "created": 1,
        "model": "m",
        "choices": [
            {"index": 0, "text": text, "finish_reason": "stop", "logprobs": logprobs, **choice},
        ],
        "usage": {
            "prompt_tokens": 7,
            "completion_tokens": tokens,
            "total_tokens": 7 + tokens,
            "prompt_tokens_details": {"cached_tokens": 2},
        },
        **({} if report is None else {"metadata": {"power": [report]}}),
    }


def report_for(custom: Mapping[str, Any], tokens: int = 4) -> Json:
    """What the plugin says of an answer to these parameters."""
    base: Json = {"sampler": custom["sampler"], "seed": custom["seed"], "law": "policy"}
    if custom["sampler"] in ("temperature", "greedy"):
        return {**base, "statistics": {"log_p": [-0.25] * tokens}}
    trace = [
        {"stage": 1, "accepted": True},
        {"stage": 2, "accepted": False},
        {"stage": 2, "accepted": True},
    ]
    cost = {"decoded_tokens": 40, "prefilled_tokens": 9, "depth": 44}
    return {**base, **cost, "log_p": -2.0, "trace": trace}


Script = Callable[[str, Json], httpx.Response]


class ScriptedApi:
    """Stands behind every client of a test.

    Args:
        patch: of the test.
        has_plugin: whether the status route is there.
        text: what is answered to a prompt and a seed.

    Attributes:
        asked: bodies of /v1/completions and /v1/chat/completions, in order.
        fault: called with the number of answers so far and the body; a response, or raises, in place of an
            answer.
    """

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        has_plugin: bool = True,
        text: Callable[[Json], str] = lambda _: "The answer is 5.",
    ) -> None:
        self._has_plugin, self._text = has_plugin, text
        self.asked: list[Json] = []
        self.fault: Callable[[int, Json], httpx.Response | None] = lambda *_: None
        patch.setattr(httpx, "Client", functools.partial(httpx.Client, transport=httpx.MockTransport(self)))
        patch.setattr(session, "RETRIES", 0)
        patch.setattr(openai, "AsyncOpenAI", self._client)

    def _client(self, **arguments: Any) -> Any:
        transport = httpx.MockTransport(self._asynchronously)
        return _CLIENT(**arguments, http_client=httpx.AsyncClient(transport=transport))

    async def _asynchronously(self, request: httpx.Request) -> httpx.Response:
        return self(request)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer one request."""
        path = request.url.path
        if path == STATUS_ROUTE:
            return httpx.Response(200, json=STATUS) if self._has_plugin else httpx.Response(404)
        if path == INFO_ROUTE:
            return httpx.Response(200, json={"version": "0.5.23"})
        if path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "m"}]})
        body: Json = json.loads(request.content)
        faulty = self.fault(len(self.asked), body)
        if faulty is not None:
            return faulty
        self.asked.append(body)
        custom = body.get("custom_params")
        report = report_for(custom) if custom is not None and self._has_plugin else None
        answer = completion(self._text(body), report)
        return httpx.Response(200, json=answer if path == "/v1/completions" else _chat(answer))


_CLIENT = openai.AsyncOpenAI


def _chat(answer: Json) -> Json:
    """The same answer as a chat."""
    choice = answer["choices"][0]
    tops = [{"token": token, "logprob": value, "bytes": None} for token, value in TOP.items()]
    entries = [
        {"token": "x", "logprob": value, "bytes": None, "top_logprobs": tops}
        for value in choice["logprobs"]["token_logprobs"]
    ]
    message = {"role": "assistant", "content": choice["text"]}
    said = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": {"content": entries}}
    return {**answer, "object": "chat.completion", "choices": [said]}
