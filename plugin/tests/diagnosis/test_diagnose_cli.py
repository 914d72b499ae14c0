"""The command `sglang-power diagnose` over real HTTP, on an exact model. Error rate 0: seeds are fixed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chain_server import STATUS, Answer, Json, power_on, serving
from coupled_chains import TRAP, TRAPPED, exact_distances
from sglang_power import cli
from sglang_power.diagnosis.report import Diagnosis
from sglang_power.gateways import INFO_ROUTE
from sglang_power.routes import STATUS_ROUTE

STEPS = 8
ASKED = ("--steps", str(STEPS), "--lag", "12", "--replicas", "23", "--max-tokens", "3")
SAMPLER = ("--alpha", "4", "--tau", "1")


def prompts(folder: Path, text: str = "one\n", name: str = "prompts.txt") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def command(url: str, path: Path, *more: str) -> list[str]:
    output = ("--output", str(path.parent / "out"))
    return ["diagnose", "--url", url, "--prompts", str(path), *ASKED, *SAMPLER, *output, *more]


def reported(path: Path) -> Diagnosis:
    return Diagnosis.model_validate_json((path.parent / "out" / "diagnosis.json").read_bytes())


def test_a_diagnosis_bounds_the_exact_distance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = prompts(tmp_path, "one\n\ntwo\n")
    with serving(power_on(TRAP)) as (url, asked):
        assert cli.main(command(url + "/v1", path)) == 0
    found = reported(path)
    assert [each.prompt for each in found.prompts] == ["one", "two"]
    exact = exact_distances(TRAP, TRAPPED, STEPS)
    for each in found.prompts:
        assert len(each.meetings) == 23
        assert all(bound >= distance for bound, distance in zip(each.distance, exact, strict=True))
        assert each.not_met[-1] == 23 - each.met
        assert 0.0 < each.acceptance_rate < 1.0
        assert each.mean_length == 3.0
        assert "are needed" in each.convergence.remark, "seven draws"
    told = capsys.readouterr()
    assert "pairs: 100%" in told.err
    assert "1 'one'" in told.out
    assert "have no bound of 0.25 within 9 steps" in told.out
    moves = [body for where, body in asked if where == "/generate"]
    assert {body["text"] for body in moves} == {"one", "two"}
    first = moves[0]["sampling_params"]["custom_params"]
    assert {name: first[name] for name in ("steps", "block_size", "alpha", "strict")} == {
        "steps": 1,
        "block_size": 3,
        "alpha": 4.0,
        "strict": True,
    }
    assert sum(each.decoded_tokens for each in found.prompts) > 3 * len(moves), "drafts are scored"


def test_steps_are_told_where_the_bound_is_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At alpha 1 the start is the target itself, but for what the pairs cannot show."""
    path = prompts(tmp_path)
    more = ("--alpha", "1", "--steps", "20", "--lag", "20", "--replicas", "32")
    with serving(power_on(TRAP)) as (url, _):
        assert cli.main(command(url, path, *more)) == 0
    found = reported(path).prompts[0]
    steps = found.steps_to["0.25"]
    assert steps is not None
    assert found.distance[steps - 1] <= 0.25 < found.distance[steps - 2]
    told = capsys.readouterr().out
    assert f"steps: {steps} bounds the distance by 0.25 on each of these prompts" in told
    assert found.convergence.rhat is not None
    assert f"{found.convergence.rhat:.3f}" in told


def test_the_same_seed_finds_the_same(tmp_path: Path) -> None:
    path = prompts(tmp_path)
    found = []
    for clients in ("1", "7"):
        with serving(power_on(TRAP)) as (url, _):
            assert cli.main(command(url, path, "--steps", "2", "--lag", "2", "--concurrency", clients)) == 0
        found.append(reported(path).prompts[0].meetings)
    assert found[0] == found[1]


def test_chats_become_ids_by_the_servers_template(tmp_path: Path) -> None:
    lines = [{"messages": [{"role": "user", "content": "hello"}]}, {"text": "b"}]
    path = prompts(tmp_path, "\n".join(map(json.dumps, lines)), "prompts.jsonl")
    with serving(power_on(TRAP)) as (url, asked):
        assert cli.main(command(url, path, "--chat", "--limit", "1", "--block-size", "2", "--stop", "x")) == 0
    asked_ids = [body.get("input_ids") for where, body in asked if where == "/generate"]
    assert asked_ids == [[1]] * len(asked_ids)
    assert [body["messages"] for where, body in asked if where == "/v1/tokenize"] == [
        [{"role": "user", "content": "hello"}]
    ]
    assert asked[-1][1]["sampling_params"]["stop"] == ["x"]
    assert not reported(path).one_stage


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--replicas", "22"], "22 pairs cannot bound a distance by 0.25 with 95% confidence"),
        (["--replicas", "23", "--confidence", "0.99"], "that takes 35, and a bound of 0.1 takes 90"),
        (["--confidence", "1"], "argument --confidence"),
        (["--lag", "7"], "argument --lag: at least --steps (8)"),
        (["--steps", "0"], "argument --steps: at least 1"),
        (["--max-tokens", "0"], "argument --max-tokens: at least 1"),
        (["--seed", "-1"], "argument --seed"),
    ],
)
def test_a_wrong_option_is_named(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(command("http://127.0.0.1:9", prompts(tmp_path), *more))
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_prompts_that_are_none_are_told_with_their_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = prompts(tmp_path, '{"text": "a"}\n["b"]\n', "bad.jsonl")
    assert cli.main(command("http://127.0.0.1:9", path)) == 2
    assert "bad.jsonl, line 2: an object" in capsys.readouterr().err
    assert cli.main(command("http://127.0.0.1:9", prompts(tmp_path, "\n"))) == 2
    assert "0 prompts; give at least 1" in capsys.readouterr().err


def test_a_url_where_nothing_serves_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command("http://127.0.0.1:9", prompts(tmp_path))) == 2
    assert "http://127.0.0.1:9 does not answer" in capsys.readouterr().err


def without_plugin(path: str, _: Json) -> Answer:
    return (200, {"version": "0.5.23"}) if path == INFO_ROUTE else (404, {})


def without_hooks(*_: object) -> Answer:
    return 200, {**STATUS, "refused": ["--speculative-algorithm"]}


def refusing(path: str, _: Json) -> Answer:
    return (200, STATUS) if path == STATUS_ROUTE else (400, {"error": {"message": "alpha=0.5: wrong"}})


def plain(path: str, _: Json) -> Answer:
    return (200, STATUS) if path == STATUS_ROUTE else (200, {"output_ids": [1], "meta_info": {}})


@pytest.mark.parametrize(
    ("script", "status", "message"),
    [
        (without_plugin, 1, "without the plugin"),
        (without_hooks, 1, "--speculative-algorithm"),
        (refusing, 2, "alpha=0.5: wrong"),
        (plain, 2, "the server runs without sglang-power"),
    ],
)
def test_a_server_that_cannot_be_diagnosed_is_told(
    script: object, status: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(script) as (url, _):  # type: ignore[arg-type]
        assert cli.main(command(url, prompts(tmp_path))) == status
    assert message in capsys.readouterr().err
