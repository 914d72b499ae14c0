"""Whatever the server prefers, requests of programs follow the law that they name. A scripted server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scripted_program import Program, generate, session_with
from scripted_server import ScriptedServer, answer
from sglang_power.frontend import branching
from sglang_power.frontend.client import Client
from sglang_power.frontend.scores import ChatJudge

PREFERRED: dict[str, Any] = {
    "temperature": 0.3,
    "top_p": 0.5,
    "top_k": 3,
    "min_p": 0.1,
    "min_new_tokens": 5,
    "ignore_eos": True,
    "frequency_penalty": 1.0,
    "presence_penalty": 1.0,
    "repetition_penalty": 1.2,
    "logit_bias": {"65": 5.0},
    "stop": "a",
    "stop_regex": "b",
    "regex": "c",
    "ebnf": "d",
    "json_schema": "{}",
    "structural_tag": "e",
}
"""--preferred-sampling-params: SGLang takes them for whatever a request does not name."""

TREE = {"nodes": [{"parent": None, "span": [0, 1], "ids": [65]}]}


def script(body: dict[str, Any]) -> Any:
    """Answers of whatever kind a request asks for."""
    params = body["sampling_params"]
    if isinstance(params, list):
        return [answer([int(token) for token in one["logit_bias"]]) for one in params]
    if isinstance(body["input_ids"][0], list):
        return [answer([], input_token_logprobs=[[-1.0, 65, None]]) for _ in body["input_ids"]]
    ran = params["custom_params"] or {"sampler": "none"}
    return answer(
        [65], output_top_logprobs=[[[-1.0, 65, None]]], power={"sampler": ran["sampler"], "tree": TREE}
    )


def test_no_preference_of_the_server_acts_on_a_request() -> None:
    session, fake = session_with(script=script)
    s = Program("x")
    generate(session, s)
    generate(session, s, values={"sampler": "power"})
    session.commit_lazy_operations(s)
    session.client.input_log_probs([((1,), (2,))])
    branching._first_tokens(session, 1, [])
    branching._at_trigger(session, {**branching.TRUNK, "trigger": "entropy"}, 4, [])
    asked = [body["sampling_params"] for path, body in fake.requests if path == "/generate"]
    named = [one for params in asked for one in (params if isinstance(params, list) else [params])]
    assert len(named) == 8, "the prompt, twice generated, cached, scored, ranked, tried, searched"
    for params in named:
        assert set(PREFERRED) <= set(params)
        assert (params["repetition_penalty"], params["json_schema"], params["ebnf"]) == (1.0, None, None)


def test_the_judge_names_its_law(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    said = [{"token": "yes", "logprob": 0.0}]
    choice = {"logprobs": {"content": [{"top_logprobs": said}]}}

    def chat(_: Client, body: dict[str, Any]) -> dict[str, Any]:
        asked.append(json.loads(json.dumps(body)))
        return {"choices": [choice]}

    monkeypatch.setattr(Client, "chat", chat)
    assert ChatJudge(ScriptedServer().client()).probability("Right?") == 1.0
    law = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    assert law.items() <= asked[0].items()
