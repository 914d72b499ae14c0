"""Answers of a real server become pages by `sglang-power trace`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sglang_power.cli import main
from sglang_power.viewer import validated

from integration_tests.helpers.clients import HTTP
from integration_tests.server import Server

PROMPT = "R7+3*2-8:"
CHAIN = {"sampler": "power", "block_size": 8, "steps": 2, "seed": 5, "return_trace": True}
TREE = {"sampler": "branch", "seed": 5, "return_tree": True}
STAR = {"sampler": "cot", "k": 4, "seed": 5, "return_tree": True}


def generate(server: Server, custom: dict[str, Any]) -> dict[str, Any]:
    body = {"text": PROMPT, "sampling_params": {"max_new_tokens": 48, "custom_params": custom}}
    answer: dict[str, Any] = HTTP.post(server.url + "/generate", json=body).raise_for_status().json()
    return answer


def chat(server: Server, custom: dict[str, Any]) -> dict[str, Any]:
    body = {
        "model": server.name,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 48,
        "custom_params": custom,
    }
    answer: dict[str, Any] = (
        HTTP.post(server.url + "/v1/chat/completions", json=body).raise_for_status().json()
    )
    return answer


@pytest.mark.parametrize("ask", [generate, chat], ids=["generate", "chat"])
@pytest.mark.parametrize(
    ("custom", "kind"), [(CHAIN, "chain"), (TREE, "tree"), (STAR, "tree")], ids=["chain", "tree", "star"]
)
def test_a_saved_answer_becomes_a_page(
    pivot_server: Server, tmp_path: Path, ask: Any, custom: dict[str, Any], kind: str
) -> None:
    saved, record, page = (tmp_path / name for name in ("answer.json", "record.json", "page.html"))
    answer = ask(pivot_server, custom)
    saved.write_text(json.dumps(answer))
    assert main(["trace", str(saved), "-o", str(page), "--save-record", str(record), "--prompt", PROMPT]) == 0
    kept = validated(json.loads(record.read_text()))
    text = answer["text"] if "text" in answer else answer["choices"][0]["message"]["content"]
    assert kept.run.kind == kind
    assert kept.answer == text
    assert kept.prompt == PROMPT
    assert PROMPT in page.read_text()


def test_an_answer_without_a_trace_is_refused_by_name(
    pivot_server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "answer.json"
    saved.write_text(json.dumps(generate(pivot_server, {**CHAIN, "return_trace": False})))
    assert main(["trace", str(saved)]) == 2
    assert "return_trace" in capsys.readouterr().err
