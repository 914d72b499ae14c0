"""`sglang-power diagnose` and `tune sampler` on the real server, from command line to files. Error rate 0."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sglang_power import cli
from sglang_power.diagnosis.report import Diagnosis
from sglang_power.sampler_tuning.outcome import Tuning

from integration_tests.server import Server

SHORT = ("--replicas", "23", "--steps", "3", "--max-tokens", "12", "--concurrency", "16")
PROBLEM = "R7+3*2-8+5*6:"


def diagnosed(url: str, prompts: Path, *more: str) -> Diagnosis:
    output = prompts.parent / "out"
    asked = ["diagnose", "--url", url, "--prompts", str(prompts), *SHORT, "--output", str(output)]
    assert cli.main([*asked, *more]) == 0
    return Diagnosis.model_validate_json((output / "diagnosis.json").read_bytes())


@pytest.mark.long
@pytest.mark.server
def test_chains_of_the_served_sampler_meet(
    pivot_server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(PROBLEM + "\n")
    found = diagnosed(pivot_server.url, prompts, "--alpha", "1", "--tau", "1", "--cut", "entropy")
    assert found.model == "pivot"
    assert found.one_stage
    each = found.prompts[0]
    assert each.met > 0, "at alpha = 1 most proposals are accepted, and after a shared cut of 0 they have met"
    assert 0.5 < each.acceptance_rate <= 1.0
    assert each.mean_length > 1
    assert each.not_met[0] >= each.not_met[-1] == 23 - each.met
    told = capsys.readouterr()
    assert "pairs: 100%" in told.err
    assert f"{each.met}/23" in told.out


@pytest.mark.long
@pytest.mark.server
def test_chats_are_diagnosed_with_the_models_template(prose_server: Server, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"messages": [{"role": "user", "content": "Who?"}]}) + "\n")
    found = diagnosed(prose_server.url, prompts, "--steps", "1", "--block-size", "6")
    assert found.prompts[0].prompt == "Who?"
    assert not found.one_stage


@pytest.mark.server
def test_a_server_without_the_plugin_is_told(
    plain_server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(PROBLEM + "\n")
    assert cli.main(["diagnose", "--url", plain_server.url, "--prompts", str(prompts)]) == 1
    assert "without the plugin" in capsys.readouterr().err
    asked = ["tune", "--url", plain_server.url, "--sample", "pivot_r", "--budget", "100"]
    assert cli.main([*asked, "--output", str(tmp_path / "out")]) == 1
    assert "nothing to tune" in capsys.readouterr().err


@pytest.mark.server
@pytest.mark.long
def test_a_sampler_is_tuned_and_its_preset_is_valid(
    pivot_server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = {"plain": {}, "greedy": {}, "power": {"alpha": [4.0], "steps": [1, 10], "cut": ["entropy"]}}
    asked = ["tune", "--url", pivot_server.url, "--sample", "pivot_r", "--limit", "40", "--budget", "60000"]
    assert cli.main([*asked, "--grid", json.dumps(grid), "--output", str(tmp_path)]) == 0
    found = Tuning.model_validate_json((tmp_path / "tuning.json").read_bytes())
    assert found.pick.name == "power[alpha=4.0,steps=10,cut=entropy]", "the model was made for it"
    assert found.held_out_asked == found.held_out_items == 12
    assert found.held_out[0].accuracy.value > found.held_out[1].accuracy.value
    assert found.spent <= found.budget
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert found.spent == sum(answer["decoded"] for answer in answers)
    capsys.readouterr()
    assert cli.main(["config", "check", str(tmp_path / "preset.yaml")]) == 0
    assert "preset tuned: " in capsys.readouterr().out
