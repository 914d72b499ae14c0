"""`sglang-power config check`: what a server would refuse is refused without one. Error rate 0."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sglang_power.cli import main
from sglang_power.errors import ConfigError
from sglang_power.gateways import ROUTED_DEFAULT
from sglang_power.server.config import load_config

CONFIGS = Path(__file__).parents[2] / "configs"

EXPERIMENT = """\
name: trial
owner: team
hypothesis: power sampling gets more thumbs up
unit: {header: x-user}
arms:
  - {name: plain, weight: 5000, control: plain, sampler: {sampler: none}}
  - {name: power, weight: 5000, sampler: {preset: fast}}
metrics: {thumbs: {source: feedback, low: 0.0, high: 1.0, absent: 0.0}}
primary: {metric: thumbs, min_effect: 0.01}
"""

DEFAULTED = """\
presets:
  fast: {sampler: power, block_size: 32, steps: 4}
  quadrants: {sampler: entropix}
parameters:
  small:
    power: {alpha: 2.0}
    entropix: {entropy_threshold: 1.5, varentropy_threshold: 0.5}
defaults:
  "*": fast
"""


def check(capsys: pytest.CaptureFixture[str], path: Path) -> tuple[int, list[str], str]:
    """Exit status, lines of stdout, stderr."""
    status = main(["config", "check", str(path)])
    captured = capsys.readouterr()
    return status, captured.out.splitlines(), captured.err


def write(folder: Path, text: str) -> Path:
    path = folder / "power.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_the_shipped_files_are_valid(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CONFIGS.parent)  # where configs/experiments.yaml looks for experiments
    status, lines, err = check(capsys, path)
    assert (status, lines[0], err) == (0, f"{path}: valid", "")


def test_it_says_what_each_default_would_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model's own parameters stand below the preset's, and above the sampler's defaults."""
    status, lines, _ = check(capsys, write(tmp_path, DEFAULTED))
    assert status == 0
    every, small = (line for line in lines if line.startswith("default of"))
    assert every.startswith("default of every model: preset fast, power: ")
    assert small.startswith("default of model small: preset fast, power: ")
    assert "alpha 4.0, block_size 32, steps 4," in every
    assert "alpha 2.0, block_size 32, steps 4," in small
    assert sum("what it does not fit runs plain" in line for line in lines) == 2
    assert "  " + ROUTED_DEFAULT in lines
    quadrants = next(line for line in lines if line.startswith("preset quadrants"))
    assert quadrants.startswith("preset quadrants: entropix (on model small): entropy_threshold 1.5")


def test_it_says_where_a_default_is_strict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strict = DEFAULTED.replace("{sampler: power,", "{sampler: power, strict: true,")
    _, lines, _ = check(capsys, write(tmp_path, strict))
    assert sum("what it does not fit is an error" in line for line in lines) == 2


def test_without_a_default_requests_are_sglangs_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, lines, _ = check(capsys, write(tmp_path, ""))
    assert "  " + ROUTED_DEFAULT not in lines
    assert "default of every model: none; requests that name no sampler are SGLang's own" in lines


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("presets:\n  fast: {sampler: powder}\n", "line 2, field 'presets.fast.sampler'"),
        ("presets:\n  fast:\n    sampler: power\n    alpha: 0.5\n", "line 4, field 'presets.fast.alpha'"),
        ("presets: {}\ndefaults:\n  '*': fast\n", "line 3, field 'defaults.*': preset 'fast' is not defined"),
        ("limits:\n  max_horizon: 0\n", "line 2, field 'limits.max_horizon'"),
        ("parameters:\n  '*':\n    power: {alhpa: 2.0}\n", "line 3, field 'parameters.*.power.alhpa'"),
        ("rewards:\n  judge: {url: nowhere}\n", "line 2, field 'rewards.judge.url'"),
        ("presets:\n  fast: {reward: judge, reward_weight: 1.0}\n", "line 2, field 'presets.fast.reward'"),
        ("limit: {}\n", "line 1, field 'limit'"),
        ("limits: {}\nlimits: {}\n", "line 2, field 'limits': duplicate key"),
        ("experiments: {log: here}\n", "line 1, field 'experiments.directory'"),
        (
            DEFAULTED + "  large: quadrants\n",
            "line 10, field 'defaults.large': preset 'quadrants' cannot run there: entropy_threshold",
        ),
    ],
)
def test_a_mistake_is_named_with_file_line_and_field(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, text)
    status, lines, err = check(capsys, path)
    assert (status, lines) == (2, [])
    assert err.startswith(f"{path}, {message}")


def test_a_default_may_hold_for_one_of_the_models_it_speaks_for(tmp_path: Path) -> None:
    """Control: thresholds that hold for one model are enough for "*", but not for a model without any."""
    load_config(write(tmp_path, DEFAULTED.replace("fast\n", "quadrants\n")))
    with pytest.raises(ConfigError, match="cannot run there"):
        load_config(write(tmp_path, DEFAULTED.replace('"*": fast', "other: quadrants")))


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = check(capsys, tmp_path / "nowhere.yaml")
    assert status == 2
    assert "nowhere.yaml" in err


# --- experiments --------------------------------------------------------------------------------------


def with_experiments(folder: Path, experiment: str) -> Path:
    (folder / "experiments").mkdir()
    (folder / "experiments" / "trial.yaml").write_text(experiment)
    section = f"experiments: {{directory: {folder / 'experiments'}, log: {folder / 'log'}}}\n"
    return write(folder, "presets:\n  fast: {sampler: power}\n" + section)


@pytest.mark.parametrize(
    ("switch", "said"),
    [("", "enrolling"), ("drain: true\n", "enrolling, draining"), ("kill: true\n", "not enrolling")],
)
def test_experiments_are_read_with_the_presets_of_the_file(
    switch: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SGLANG_POWER_UNIT_KEY", raising=False)
    status, lines, _ = check(capsys, with_experiments(tmp_path, EXPERIMENT + switch))
    assert status == 0
    assert f"experiment trial: {said}, phase 0, arms plain (none), power (fast)" in lines
    assert lines[-1] == "not set here, and a server needs it: SGLANG_POWER_UNIT_KEY"
    assert not (tmp_path / "log").exists()


def test_an_arm_whose_preset_is_not_in_the_file_is_refused_at_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = with_experiments(tmp_path, EXPERIMENT.replace("preset: fast", "preset: gone"))
    status, _, err = check(capsys, path)
    assert status == 2
    assert err.startswith(f"{tmp_path}/experiments/trial.yaml, line 7, field 'arms.1.sampler.preset'")


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, f"experiments: {{directory: {tmp_path / 'gone'}, log: {tmp_path}}}\n")
    status, _, err = check(capsys, path)
    assert status == 2
    assert str(tmp_path / "gone") in err


def test_secrets_are_named_and_not_needed_here_but_a_server_needs_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "rewards:\n  judge: {url: 'http://judge.test/score', headers_env: JUDGE_TOKEN}\n")
    monkeypatch.delenv("JUDGE_TOKEN", raising=False)
    status, lines, _ = check(capsys, path)
    assert (status, lines[-1]) == (0, "not set here, and a server needs it: JUDGE_TOKEN")
    with pytest.raises(ConfigError, match="'JUDGE_TOKEN' is not set"):
        load_config(path)
    monkeypatch.setenv("JUDGE_TOKEN", "hush-hush")
    _, lines, _ = check(capsys, path)
    assert not any("JUDGE_TOKEN" in line or "hush-hush" in line for line in lines)


def test_it_runs_without_sglang_and_without_a_gpu() -> None:
    script = (
        "import sys\n"
        "from sglang_power.cli import main\n"
        f"status = main(['config', 'check', {str(CONFIGS / 'chat.yaml')!r}])\n"
        "print(status, 'sglang' in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "0 False"
