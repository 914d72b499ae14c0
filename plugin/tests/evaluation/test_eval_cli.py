"""The command `sglang-power eval` against a scripted server: what it asks, resuming, faults. Error rate 0."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from eval_answers import STATUS, ScriptedApi
from sglang_power import cli
from sglang_power.evaluation.arms import parse_sweep, seed_of
from sglang_power.evaluation.folder import ANSWERS, RUN
from sglang_power.evaluation.results import Report
from sglang_power.gateways import INFO_ROUTE
from sglang_power.routes import STATUS_ROUTE


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Three items, of which 5 is the answer to two."""
    path = tmp_path / "sums.jsonl"
    lines = [{"prompt": f"{n}?", "answer": 5 if n < 2 else 6, "id": f"s{n}"} for n in range(3)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def command(task: Path, *more: str) -> list[str]:
    output = ["--output", str(task.parent / "out")] if "--output" not in more else []
    return ["eval", "--url", "http://fake/v1", "--task", str(task), *output, *more]


def reported(task: Path, folder: str = "out") -> Report:
    return Report.model_validate_json((task.parent / folder / "report.json").read_bytes())


def test_every_sampler_is_asked_and_the_report_is_written(
    monkeypatch: pytest.MonkeyPatch, task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = ScriptedApi(monkeypatch)
    assert cli.main(command(task, "--samples", "2", "--concurrency", "3")) == 0
    found = reported(task)
    assert [row.name for row in found.rows] == [
        "plain",
        "lowtemp",
        "greedy",
        "power",
        "smc",
        "vote",
        "best_of",
    ]
    for row in found.rows:
        assert row.accuracy.value == pytest.approx(2 / 3)
        assert row.samples == (1 if row.name == "greedy" else 2), "what draws nothing is asked once"
    assert len(server.asked) == 3 * (6 * 2 + 1)
    assert all(body["custom_params"]["strict"] is True for body in server.asked)
    seeds = [body["custom_params"]["seed"] for body in server.asked]
    assert len(set(seeds)) == len(seeds)
    assert seed_of(0, "s0", "plain", 1) in seeds
    printed = capsys.readouterr()
    assert printed.out.startswith("Correlation of mean log p with being right: ")
    assert "answers: 100%" in printed.err
    assert "power 0.67" in printed.err
    page = (task.parent / "out" / "report.html").read_text()
    assert "Correlation of mean log p" in page


def test_samplers_read_answers_as_the_grader_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = ScriptedApi(monkeypatch)
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "a", "answer": "5", "kind": "regex", "pattern": "is (\\\\d)"}\n')
    params = '{"vote": {"samples": 3}, "power": {"steps": 4}}'
    assert cli.main(command(path, "--samplers", "vote,power,perfect", "--params", params)) == 0
    sent = {body["custom_params"]["sampler"]: body["custom_params"] for body in server.asked}
    assert sent["vote"] | {"answer": "regex", "answer_regex": "is (\\d)", "samples": 3} == sent["vote"]
    assert sent["power"]["steps"] == 4
    assert "answer" not in sent["perfect"]


def test_a_sweep_has_an_arm_for_every_value(monkeypatch: pytest.MonkeyPatch, task: Path) -> None:
    server = ScriptedApi(monkeypatch)
    more = ("--samplers", "power", "--sweep", "power.steps=1,2", "--sweep", "power.alpha=1.5")
    assert cli.main(command(task, *more)) == 0
    rows = reported(task).rows
    assert [(row.name, row.swept) for row in rows] == [
        ("power[steps=1]", ("steps", 1)),
        ("power[steps=2]", ("steps", 2)),
        ("power[alpha=1.5]", ("alpha", 1.5)),
    ]
    assert {body["custom_params"].get("steps") for body in server.asked} == {1, 2, None}


@pytest.mark.parametrize("text", ["power", "power.steps", "power.steps=", "steps=1", "power.steps=true"])
def test_a_sweep_that_is_none_is_told(text: str) -> None:
    with pytest.raises(Exception, match=r"write it like power\.steps=1,2,5,10"):
        parse_sweep(text)


# --- resuming ---


def answers_of(task: Path) -> list[dict[str, Any]]:
    lines = (task.parent / "out" / ANSWERS).read_text().splitlines()
    return [json.loads(line) for line in lines]


def told(report: Report) -> dict[str, Any]:
    """What of a report does not depend on time."""
    return report.model_dump(exclude={"load", "command"})


def test_an_interrupted_run_goes_on_and_comes_to_the_same(
    monkeypatch: pytest.MonkeyPatch, task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C after half of the answers; what is there is not asked again."""
    server = ScriptedApi(monkeypatch, text=lambda body: str(body["custom_params"]["seed"] % 3 + 4))
    assert cli.main(command(task, "--samples", "3", "--output", str(task.parent / "whole"))) == 0
    everything = len(server.asked)
    server.asked.clear()

    def interrupt(count: int, body: dict[str, Any]) -> None:  # noqa: ARG001
        if count == everything // 2:
            signal.raise_signal(signal.SIGINT)

    server.fault = interrupt
    assert cli.main(command(task, "--samples", "3")) == 130
    assert "interrupted; the same command goes on where it ended" in capsys.readouterr().err
    before = len(answers_of(task))
    assert 0 < before < everything
    server.fault = lambda *_: None
    server.asked.clear()
    assert cli.main(command(task, "--samples", "3")) == 0
    assert len(server.asked) == everything - before
    assert told(reported(task)) == told(reported(task, "whole"))
    assert reported(task).rows[0].accuracy.value not in (0.0, 1.0)


def test_samples_and_samplers_may_be_added_later(monkeypatch: pytest.MonkeyPatch, task: Path) -> None:
    server = ScriptedApi(monkeypatch)
    assert cli.main(command(task, "--samplers", "plain")) == 0
    server.asked.clear()
    assert cli.main(command(task, "--samplers", "plain,smc", "--plain-samples", "4")) == 0
    assert len(server.asked) == 3 * 3 + 3
    assert [(row.name, row.answers) for row in reported(task).rows] == [("plain", 12), ("smc", 3)]


def test_a_report_is_made_again_without_a_server(
    monkeypatch: pytest.MonkeyPatch, task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ScriptedApi(monkeypatch)
    assert cli.main(command(task, "--samplers", "plain,power")) == 0
    before = reported(task)
    (task.parent / "out" / "report.json").unlink()
    assert cli.main(["eval", "report", "--output", str(task.parent / "out")]) == 0
    assert reported(task) == before
    assert cli.main(["eval", "report", "--output", str(task.parent)]) == 2
    assert f"holds no {RUN}" in capsys.readouterr().err


# --- faults ---


def test_a_server_that_dies_ends_the_run_and_what_was_answered_is_kept(
    monkeypatch: pytest.MonkeyPatch, task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = ScriptedApi(monkeypatch)

    def dead(count: int, body: dict[str, Any]) -> None:  # noqa: ARG001
        if count >= 5:
            raise httpx.ConnectError("connection refused")

    server.fault = dead
    assert cli.main(command(task, "--concurrency", "1")) == 2
    told = capsys.readouterr().err
    assert "the server does not answer any more: connection refused" in told
    assert "5 answers are kept in" in told
    assert "the same command goes on where it ended" in told
    assert len(answers_of(task)) == 5
    server.fault = lambda *_: None
    assert cli.main(command(task, "--concurrency", "1")) == 0


def test_a_full_disk_ends_the_run_and_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import resource

    ScriptedApi(monkeypatch)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, before[1]))
    try:
        assert cli.main(command(task)) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    told = capsys.readouterr().err
    assert f"{ANSWERS} cannot be written: File too large" in told
    kept = len(answers_of(task))
    assert f"{kept} answers are kept" in told
    assert kept > 0
    assert cli.main(command(task)) == 0


def test_a_server_without_the_plugin_runs_what_makes_sense(
    monkeypatch: pytest.MonkeyPatch, task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ScriptedApi(monkeypatch, has_plugin=False)
    assert cli.main(command(task)) == 0
    printed = capsys.readouterr()
    for line in (
        "without the plugin",
        "serves no sampler of the plugin: power, smc, vote, best_of",
        "no seed",
    ):
        assert line in printed.err
        assert line in printed.out
    assert [row.name for row in reported(task).rows] == ["plain", "lowtemp", "greedy"]
    assert cli.main(command(task, "--samplers", "power", "--output", str(task.parent / "b"))) == 2
    assert "nothing is left to run" in capsys.readouterr().err


def test_a_server_whose_flags_rule_samplers_out_is_as_one_without(
    monkeypatch: pytest.MonkeyPatch, task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(STATUS, "refused", ["--tp-size 2"])
    server = ScriptedApi(monkeypatch)
    assert cli.main(command(task)) == 0
    assert all("custom_params" not in body for body in server.asked)
    assert "rule samplers out: --tp-size 2" in capsys.readouterr().err


@pytest.mark.parametrize("given", [False, True])
def test_no_server_another_service_and_a_key(
    monkeypatch: pytest.MonkeyPatch, task: Path, capsys: pytest.CaptureFixture[str], given: bool
) -> None:
    answers = {STATUS_ROUTE: 401 if given else 404, INFO_ROUTE: 404}

    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(answers[request.url.path])

    client = httpx.Client
    monkeypatch.setattr(httpx, "Client", lambda **kw: client(**kw, transport=httpx.MockTransport(handle)))
    assert cli.main(command(task, *(["--api-key", "k"] if given else []))) == 2
    assert ("refuses this key" if given else "is no SGLang server") in capsys.readouterr().err
    monkeypatch.setattr(httpx, "Client", client)
    assert cli.main([*command(task), "--url", "http://127.0.0.1:9"]) == 2
    assert "http://127.0.0.1:9 does not answer" in capsys.readouterr().err


def test_a_wrong_model_is_told_with_those_that_there_are(
    monkeypatch: pytest.MonkeyPatch, task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = ScriptedApi(monkeypatch)
    assert cli.main(command(task, "--model", "n")) == 2
    assert "--model n: http://fake serves m" in capsys.readouterr().err
    assert server.asked == []
    assert not (task.parent / "out").exists()


def test_an_arm_that_the_server_refuses_is_left_out(
    monkeypatch: pytest.MonkeyPatch, task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = ScriptedApi(monkeypatch)

    def refuse(count: int, body: dict[str, Any]) -> httpx.Response | None:  # noqa: ARG001
        if body["custom_params"]["sampler"] == "smc":
            return httpx.Response(400, json={"message": "particles=99: too many"})
        return None

    server.fault = refuse
    assert cli.main(command(task, "--samples", "4", "--concurrency", "1")) == 0
    assert "not served: smc: particles=99: too many" in capsys.readouterr().out
    assert "smc" not in [row.name for row in reported(task).rows]


def test_prompts_that_are_too_long_cost_their_answers_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each has a message of its own; the first one that fits comes after five that do not."""
    server, path = ScriptedApi(monkeypatch), tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"prompt": "x" * (9 - n), "answer": 5}) + "\n" for n in range(7)))

    def fits(count: int, body: dict[str, Any]) -> httpx.Response | None:  # noqa: ARG001
        size = len(body["prompt"])
        return httpx.Response(400, json={"message": f"{size} tokens: too long"}) if size > 4 else None

    server.fault = fits
    assert cli.main(command(path, "--samplers", "plain", "--concurrency", "1")) == 1
    printed = capsys.readouterr().out
    for size in (9, 8, 7):
        assert f"no answer to 1 of plain: {size} tokens: too long" in printed
    assert "no answer to 2 of plain: for reasons like these" in printed
    assert [(row.answers, row.missing) for row in reported(path).rows] == [(2, 5)]


def test_a_single_answer_that_fails_is_missing_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server, failed = ScriptedApi(monkeypatch), threading.Event()

    def once(count: int, body: dict[str, Any]) -> httpx.Response | None:  # noqa: ARG001
        if body["custom_params"]["sampler"] == "power" and not failed.is_set():
            failed.set()
            return httpx.Response(500, json={"message": "a row that is no number"})
        return None

    server.fault = once
    assert cli.main(command(task)) == 1, "the report says that an answer is missing"
    assert "no answer to 1 of power: HTTP 500: a row that is no number" in capsys.readouterr().out
    assert {row.name: row.missing for row in reported(task).rows}["power"] == 1
    assert cli.main(command(task)) == 0, "it is asked again"


WRONG: list[tuple[list[str], str]] = [
    (["--samplers", "plain,powr"], "unknown sampler 'powr': choose among plain"),
    (["--params", "{"], "--params: "),
    (["--params", "nowhere.yaml"], "No such file"),
    (["--params", '{"power": 3}'], "a table by sampler is needed"),
    (["--params", '{"powr": {}}'], "unknown sampler 'powr'"),
    (["--sweep", "smd.x=1"], "unknown sampler 'smd'"),
    (["--samplers", "plain", "--sweep", "smc.particles=1"], "--sweep smc: it is not among"),
    (["--shots", "2"], "no worked examples"),
]


@pytest.mark.parametrize(("more", "problem"), WRONG, ids=[" ".join(more) for more, _ in WRONG])
def test_wrong_options_are_told_before_anything_is_asked(
    monkeypatch: pytest.MonkeyPatch,
    task: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    problem: str,
) -> None:
    server = ScriptedApi(monkeypatch)
    assert cli.main(command(task, *more)) == 2
    assert problem in capsys.readouterr().err
    assert server.asked == []
    assert not (task.parent / "out").exists()


@pytest.mark.parametrize(
    "option", ["--samples", "--limit", "--concurrency", "--max-tokens", "--plain-samples"]
)
def test_counts_are_at_least_one(task: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(command(task, option, "0"))
    assert f"argument {option}: at least 1" in capsys.readouterr().err


def test_a_malformed_task_is_told_and_stays(
    monkeypatch: pytest.MonkeyPatch, task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ScriptedApi(monkeypatch)
    task.write_text(task.read_text() + '{"prompt": "x"')
    before = task.read_bytes()
    assert cli.main(command(task)) == 2
    assert f"{task}, line 4: not JSON" in capsys.readouterr().err
    assert task.read_bytes() == before


def test_tasks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "tasks"]) == 0
    assert "gsm8k" in capsys.readouterr().out


def test_votes_on_programs_are_not_run(
    monkeypatch: pytest.MonkeyPatch, task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = ScriptedApi(monkeypatch, text=lambda _: "x = 5")
    task.write_text('{"prompt": "x?", "answer": "assert x == 5", "kind": "code"}\n')
    assert cli.main(command(task, "--samplers", "plain,vote,best_of")) == 0
    assert "vote is not run" in capsys.readouterr().err
    found = reported(task)
    assert [(row.name, row.accuracy.value) for row in found.rows] == [("plain", 1.0), ("best_of", 1.0)]
    assert any("network closed by" in note for note in found.notes)
    assert {body["custom_params"]["sampler"] for body in server.asked} == {"temperature", "best_of"}
