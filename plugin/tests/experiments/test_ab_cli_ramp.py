"""`sglang-power ab ramp`: it watches until the experiment is killed, whatever goes wrong in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ab_commands import RAMP, logged, written
from sglang_power import cli
from sglang_power.experiments.state import State, read_state, state_path, write_state


def test_a_ramp_looks_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes: dict[str, Any] = {"ramp": RAMP, "guardrails": []}
    file = written(tmp_path / "experiments", **changes)
    log = logged(tmp_path, **changes)
    assert cli.main(["ab", "ramp", str(file), "--log", str(log), "--once"]) == 0
    assert "power-vs-plain on to phase 1: phase 0 showed no harm in 40 units" in capsys.readouterr().out
    assert read_state(state_path(file)).phase == 1


def test_a_ramp_ends_when_the_experiment_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "experiments", ramp=RAMP)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        written(tmp_path / "experiments", ramp=RAMP, kill=len(slept) == 2)

    monkeypatch.setattr(time, "sleep", sleep)
    log = tmp_path / "log"
    log.mkdir()
    assert cli.main(["ab", "ramp", str(file), "--log", str(log), "--every", "7"]) == 0
    assert slept == [7.0, 7.0]
    said = capsys.readouterr().out.splitlines()
    assert ["stays in phase 0" in line for line in said] == [True, True, False]
    assert said[2].endswith("killed in phase 0: by its file")


def _typo(file: Path, _log: Path) -> None:
    written(file.parent, ramp=RAMP, ownr="typo")


def _half_a_file(file: Path, _log: Path) -> None:
    file.write_text(file.read_text()[:100])


def _no_file(file: Path, _log: Path) -> None:
    file.unlink()


def _no_ramp(file: Path, _log: Path) -> None:
    written(file.parent)


def _half_a_state(file: Path, _log: Path) -> None:
    state_path(file).write_text("{")


def _newer_schema(_file: Path, log: Path) -> None:
    (log / "a.jsonl").write_text('{"version":9}\n')


def _no_log(_file: Path, log: Path) -> None:
    log.rename(log.with_name("elsewhere"))


def _broken_disk(_file: Path, log: Path) -> None:
    (log / "a.jsonl").mkdir()


@pytest.mark.parametrize(
    ("harm", "told", "looks"),
    [
        (_typo, "field 'ownr': Extra inputs", True),
        (_half_a_file, "power-vs-plain.yaml", True),
        (_no_file, "power-vs-plain.yaml", True),
        (_no_ramp, "field 'ramp': the experiment has none; it looks on with the file as it was before", True),
        (_half_a_state, "power-vs-plain.state.json", False),
        (_newer_schema, "a.jsonl:1: version: '9' is not 1", False),
        (_no_log, "is no directory", False),
        (_broken_disk, "; it looks again in 300 s", False),
    ],
)
def test_a_bad_look_is_told_and_not_the_last(
    harm: Callable[[Path, Path], None],
    told: str,
    looks: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Harmed after the first look, mended after the second, killed after the third."""
    file, log = written(tmp_path / "experiments", ramp=RAMP), tmp_path / "log"
    log.mkdir()
    slept: list[float] = []

    def mend() -> None:
        for thing in log.glob("a.jsonl"):
            thing.rmdir() if thing.is_dir() else thing.unlink()
        if not log.exists():
            log.with_name("elsewhere").rename(log)
        written(file.parent, ramp=RAMP)
        write_state(state_path(file), State(reason="mended"))

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        match len(slept):
            case 1:
                harm(file, log)
            case 2:
                mend()
            case 3:
                write_state(state_path(file), State(killed=True, reason="enough"))

    monkeypatch.setattr(time, "sleep", sleep)
    assert cli.main(["ab", "ramp", str(file), "--log", str(log)]) == 0
    out, err = capsys.readouterr()
    assert len(slept) == 3
    assert told in err
    assert err.count("\n") == 1
    stays = ["stays in phase 0" in line for line in out.splitlines()]
    assert stays == [True, *([True] if looks else []), True, False]
    assert out.endswith("killed in phase 0: enough\n")


@pytest.mark.parametrize("harm", [_typo, _half_a_state, _newer_schema])
@pytest.mark.parametrize("once", [["--once"], []])
def test_a_bad_first_look_ends_the_command(
    harm: Callable[[Path, Path], None], once: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, log = written(tmp_path / "experiments", ramp=RAMP), tmp_path / "log"
    log.mkdir()
    harm(file, log)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it looks again"))
    assert cli.main(["ab", "ramp", str(file), "--log", str(log), *once]) == 2


@pytest.mark.parametrize("where", ["time.sleep", "sglang_power.experiments.analysis.ramp.step"])
def test_it_is_ended_by_ctrl_c_at_any_moment(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, log = written(tmp_path / "experiments", ramp=RAMP), tmp_path / "log"
    log.mkdir()

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupted)
    assert cli.main(["ab", "ramp", str(file), "--log", str(log)]) == 130
