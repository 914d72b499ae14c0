"""The command `sglang-power tune thresholds` against a scripted server. Error rate 0."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from sglang_power import cli
from sglang_power.gateways import INFO_ROUTE
from sglang_power.request import BranchRequest, parse_request
from sglang_power.routes import STATUS_ROUTE
from sglang_power.server.config import load_config
from sglang_power.types import ROW_FIELDS

Serve = Callable[[Callable[[str, dict[str, Any]], httpx.Response]], list[tuple[str, dict[str, Any]]]]


def report(values: dict[str, Any]) -> dict[str, Any]:
    """Rows of 200 tokens, other ones for every seed; entropies of drawn answers are twice those of greedy."""
    rng = np.random.default_rng(values["seed"])
    rows = {name: np.abs(rng.normal(size=200)) for name in ROW_FIELDS}
    rows["log_p"] = -rows["log_p"]
    rows["entropy"] *= 2 if "continuation_policy" in values else 1
    shown = {name: column.tolist() for name, column in rows.items()}
    shown["varentropy"][0] = None
    return {"sampler": values["sampler"], "paths": [{"rows": shown}]}


def serves(path: str, body: dict[str, Any]) -> httpx.Response:
    """What a server with the plugin answers."""
    if path == STATUS_ROUTE:
        return httpx.Response(200, json={"served_model": "m", "processes": [], "refused": []})
    if path == "/generate":
        values = body["sampling_params"]["custom_params"]
        return httpx.Response(200, json={"text": "", "meta_info": {"power": report(values)}})
    assert path == "/v1/chat/completions"
    values = body["custom_params"]
    return httpx.Response(200, json={"choices": [{}], "metadata": {"power": [report(values)]}})


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Put a scripted server behind every client; returns what it is asked."""

    def start(script: Callable[[str, dict[str, Any]], httpx.Response]) -> list[tuple[str, dict[str, Any]]]:
        asked: list[tuple[str, dict[str, Any]]] = []

        def handle(request: httpx.Request) -> httpx.Response:
            body = json.loads(request.content) if request.content else {}
            asked.append((request.url.path, body))
            return script(request.url.path, body)

        client = functools.partial(httpx.Client, transport=httpx.MockTransport(handle))
        monkeypatch.setattr(httpx, "Client", client)
        return asked

    return start


def prompts(folder: Path, name: str = "prompts.txt", text: str = "one\n\ntwo\nthree\n") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def command(path: Path, *more: str) -> list[str]:
    return ["tune", "thresholds", "--url", "http://fake/v1", "--prompts", str(path), *more]


def test_the_command_writes_the_thresholds_of_the_served_model(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, output = serve(serves), tmp_path / "tuned.yaml"
    assert cli.main(command(prompts(tmp_path), "--rate", "0.1", "-o", str(output))) == 0
    printed = capsys.readouterr()
    assert printed.out == f"wrote {output}\n"
    assert "answers: 100%" in printed.err
    config = load_config(output)
    assert list(config.parameters) == ["m"]
    greedy = np.concatenate(
        [report({"sampler": "branch", "seed": seed})["paths"][0]["rows"]["entropy"] for seed in range(3)]
    )
    request = config.resolve({"sampler": "branch"}, "m")
    assert isinstance(request, BranchRequest)
    assert np.mean(greedy > request.triggers[0].thresholds[0]) == pytest.approx(0.1)
    entropix = config.parameters["m"]["entropix"]["entropy_threshold"]
    assert np.mean(2 * greedy > entropix) == pytest.approx(0.1)
    texts = [body["text"] for path, body in asked if path == "/generate"]
    assert sorted(texts) == ["one", "one", "three", "three", "two", "two"]


def test_what_is_asked_is_a_search_that_never_forks(serve: Serve, tmp_path: Path) -> None:
    asked = serve(serves)
    assert cli.main(command(prompts(tmp_path), "--max-tokens", "33")) == 0
    for path, body in asked:
        if path == "/generate":
            assert body["sampling_params"]["max_new_tokens"] == 33
            request = parse_request(body["sampling_params"]["custom_params"])
            assert isinstance(request, BranchRequest)
            assert request.return_rows


def test_chats_are_asked_as_chats(serve: Serve, tmp_path: Path) -> None:
    asked = serve(serves)
    lines = [{"text": "a"}, {"prompt": "b"}, {"messages": [{"role": "system", "content": "c"}]}]
    path = prompts(tmp_path, "prompts.jsonl", "\n".join(map(json.dumps, lines)))
    assert cli.main(command(path, "--chat", "--limit", "9")) == 0
    contents = {body["messages"][0]["content"] for where, body in asked if where.endswith("completions")}
    assert contents == {"a", "b", "c"}
    asked.clear()
    assert cli.main(command(path)) == 0
    assert {where for where, _ in asked} == {STATUS_ROUTE, "/generate", "/v1/chat/completions"}


def test_few_rows_are_told(serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    serve(serves)
    assert cli.main(command(prompts(tmp_path), "--rate", "0.01")) == 0
    assert "only 600 rows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rate", "0"], "argument --rate"),
        (["--rate", "nan"], "argument --rate"),
        (["--limit", "1"], "argument --limit"),
        (["--max-tokens", "1"], "argument --max-tokens"),
        (["--concurrency", "0"], "argument --concurrency"),
    ],
)
def test_a_wrong_option_is_named(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(command(prompts(tmp_path), *more))
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.txt", "\n \n", "0 prompts"),
        ("bad.jsonl", '{"text": "a"}\n{"text": \n', "bad.jsonl, line 2: not JSON"),
        ("bad.jsonl", '{"text": "a"}\n["b"]\n', "bad.jsonl, line 2: an object"),
    ],
)
def test_prompts_that_are_none_are_told_with_their_line(
    name: str, text: str, message: str, serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(serves)
    assert cli.main(command(prompts(tmp_path, name, text))) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (httpx.Response(400, text="too long"), "the server answered 400: too long"),
        (httpx.Response(200, json={"meta_info": {}}), "the server ran None instead of 'branch'"),
    ],
)
def test_a_server_that_does_not_measure_is_told(
    answer: httpx.Response,
    message: str,
    serve: Serve,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    serve(lambda path, body: serves(path, body) if path == STATUS_ROUTE else answer)
    assert cli.main(command(prompts(tmp_path))) == 2
    assert message in capsys.readouterr().err


def test_a_server_without_the_plugin_is_told(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = httpx.Response(200, json={"version": "0.5.23"})
    serve(lambda path, _: info if path == INFO_ROUTE else httpx.Response(404))
    assert cli.main(command(prompts(tmp_path))) == 1
    assert "without the plugin" in capsys.readouterr().err
