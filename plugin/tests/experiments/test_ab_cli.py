"""The commands `sglang-power ab ...`: what they print and write, and one line for whatever is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ab_commands import EXPOSURE, RAMP, logged, written
from ab_lines import BEFORE, Lines, experiment
from sglang_power import cli
from sglang_power.experiments.analysis.results import Report
from sglang_power.experiments.catalogue import Catalogue, unchecked
from sglang_power.experiments.records import unit_hash
from sglang_power.experiments.state import State, state_path, write_state
from sglang_power.experiments.versions import config_hash, legacy_hash


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path / "experiments")


def test_a_report_is_printed_and_written(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, page, document = logged(tmp_path), tmp_path / "r.html", tmp_path / "r.json"
    argv = ["ab", "report", str(file), "--log", str(log), "--json", str(document), "--html", str(page)]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert "VERDICT: keep running" in out
    assert out.endswith(f"wrote {document}\nwrote {page}\n")
    report = Report.model_validate_json(document.read_text())
    assert (report.units, report.phase, report.config) == (40, 0, config_hash(experiment()))
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(("now", "units"), [("100", 0), ("1970-01-01T00:01:40+00:00", 0), (None, 40)])
def test_a_report_may_be_as_of_an_earlier_time(
    now: str | None, units: int, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_of = [] if now is None else ["--now", now]
    assert cli.main(["ab", "report", str(file), "--log", str(logged(tmp_path)), *as_of]) == 0
    assert f"{units} units analysed" in capsys.readouterr().out


@pytest.mark.parametrize(("asked", "units"), [([], 40), (["--phase", "1"], 40), (["--phase", "0"], 0)])
def test_the_phase_is_the_one_of_the_state_unless_asked(
    asked: list[str], units: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "experiments", ramp=RAMP)
    write_state(state_path(file), State(phase=1))
    log = logged(tmp_path, phase=1, ramp=RAMP)
    assert cli.main(["ab", "report", str(file), "--log", str(log), *asked]) == 0
    assert f"{units} units analysed" in capsys.readouterr().out


def test_unreadable_lines_are_told_with_their_place(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = logged(tmp_path)
    (log / "z.jsonl").write_text("nonsense\n" * 25)
    assert cli.main(["ab", "report", str(file), "--log", str(log)]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines()[0].startswith("unreadable: z.jsonl:1: Invalid JSON")
    assert captured.err.splitlines()[-1] == "unreadable: 5 more lines"
    assert "25 other lines that could not be read" in captured.out


def test_outcomes_are_ingested(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, table = logged(tmp_path), tmp_path / "o.csv"
    table.write_text(f"exposure_id,metric,value,at\n{EXPOSURE},thumbs,1,{time.time() - 864_000 + 60:.0f}\n")
    assert cli.main(["ab", "ingest", str(table), "--log", str(log)]) == 0
    assert capsys.readouterr().out.startswith(f"wrote 1 outcomes into {log}/ingest-")
    document = tmp_path / "r.json"
    assert cli.main(["ab", "report", str(file), "--log", str(log), "--json", str(document)]) == 0
    assert json.loads(document.read_text())["arms"][0]["means"]["thumbs"] == pytest.approx(1 / 20)


@pytest.mark.parametrize(
    ("away", "more", "written_", "unmatched"),
    [(50, [], 2, 1), (90, [], 1, 2), (90, ["--within", "120"], 2, 1)],
)
def test_outcomes_of_units_are_ingested_by_name_and_time(
    away: int,
    more: list[str],
    written_: int,
    unmatched: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MY_KEY", "key")
    began = time.time() - 10 * 86_400.0
    log = Lines()
    log.enrol(unit_hash("ann", b"key"), "plain", began, exposure_id=EXPOSURE)
    log.write(tmp_path / "log")
    table = tmp_path / "o.csv"
    rows = [f"ann,{began:.0f},thumbs,1", f"ann,{began + away:.0f},thumbs,0", f"eve,{began:.0f},thumbs,1"]
    table.write_text("unit,time,metric,value,at\n" + "".join(f"{row},{began + 99:.0f}\n" for row in rows))
    argv = ["ab", "ingest", str(table), "--log", str(tmp_path / "log"), "--unit-key-env", "MY_KEY", *more]
    assert cli.main(argv) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"wrote {written_} outcomes into ")
    assert said.endswith(f"; {unmatched} rows are of no enrolled request\n")


def test_a_simulation_is_printed_and_written(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "s.json"
    sizes = ["--units", "200", "--runs", "4", "--looks", "2", "--seed", "3"]
    base = [f"--base={name}" for name in ("thumbs=0.3", "failed=0.02", "tokens=100")]
    argv = ["ab", "simulate", str(file), *base, "--lift=thumbs=0.5", *sizes, "--json", str(document)]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert "power-vs-plain: 4 runs of 200 units" in out
    assert "ended with ship (power): " in out
    result = json.loads(document.read_text())
    assert result["assumptions"]["lift"] == {"thumbs": 0.5}
    assert result["assumptions"]["runs"] == 4


def test_files_and_directories_are_checked(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = {"name": "power", "sampler": {"sampler": "power", "alpha": 4.0}, "weight": 5000}
    written(file.parent, "other", arms=[BEFORE["arms"][0], own])
    assert cli.main(["ab", "check", str(file), str(file.parent)]) == 0
    first, other, again = capsys.readouterr().out.splitlines()
    left = "; only a server knows whether it has the presets 'power', whether it supports every arm"
    assert first == f"{file}: power-vs-plain is valid{left}"
    assert again == f"{file.parent}: power-vs-plain is valid{left}"
    assert other == f"{file.parent}: other is valid; only a server knows whether it supports every arm"


def checked(capsys: pytest.CaptureFixture[str], *argv: object) -> list[str]:
    """What `ab check` says beside that the file is valid."""
    assert cli.main(["ab", "check", *map(str, argv)]) == 0
    return [line.partition("power-vs-plain: ")[2] for line in capsys.readouterr().out.splitlines()[1:]]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"owner": "another"}, ["owner: changes nothing of the data"]),
        ({"alpha": 0.1}, ["alpha: all data count, and are judged by the new rules"]),
        ({"on_error": "error"}, ["on_error: A NEW VERSION: the data so far do not count any more"]),
        (
            {"kill": True},
            ["kill: from now on nobody is enrolled; units whose outcome window is open will never"],
        ),
        (
            {"drain": True},
            ["drain: everybody is served as before; units that come from now on are not analysed"],
        ),
        ({"owner": "a", "alpha": 0.1}, ["owner: changes nothing", "alpha: all data count"]),
        ({}, ["nothing differs"]),
    ],
    ids=str,
)
def test_a_check_says_what_an_edit_does_to_the_data(
    edit: dict[str, Any], said: list[str], file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = written(tmp_path / "edited", **edit)
    told = checked(capsys, now, "--before", file)
    assert len(told) == len(said)
    for line, begins in zip(told, said, strict=True):
        assert line.startswith(begins)


def test_a_check_of_a_ramp_says_which_phases_are_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    was = written(tmp_path / "experiments", ramp=RAMP)
    more = [RAMP[0], {"weights": {"plain": 4000, "power": 6000}}]
    (said,) = checked(capsys, written(tmp_path / "edited", ramp=more), "--before", was)
    assert said.startswith("ramp: A NEW VERSION: the data of phase 1 so far do not count any more")


@pytest.mark.parametrize("edit", [{}, {"owner": "another"}, {"alpha": 0.1}, {"on_error": "error"}], ids=str)
def test_check_report_and_server_agree_on_what_counts(
    edit: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log is of the file as it was, by today's releases and by the first ones."""
    was, log = experiment(), logged(tmp_path)
    lines = Lines(config=legacy_hash(was))
    lines.enrol("early", "plain", time.time() - 20 * 86_400.0, exposure_id="early")
    lines.change(time.time() - 19 * 86_400.0, "loaded", config=config_hash(was), legacy=legacy_hash(was))
    lines.write(log, "old.jsonl")
    folder = tmp_path / "experiments"
    file = written(folder)
    server = Catalogue(folder, unchecked)
    written(folder, **edit)
    server.reload()
    counts = "on_error" not in edit
    assert server.begun_anew == (() if counts else ("power-vs-plain",))
    (said,) = checked(capsys, file, "--log", log)
    requests = "42 requests count" if counts else "0 requests count"
    assert said.startswith(f"log: {requests} under this version of the file, in phase 0")
    assert ("42 requests do not" in said) is not counts
    document = tmp_path / "r.json"
    assert cli.main(["ab", "report", str(file), "--log", str(log), "--json", str(document)]) == 0
    found = Report.model_validate_json(document.read_text())
    assert (found.units, found.excluded.other_configuration) == ((41, 0) if counts else (0, 42))


def test_a_check_counts_the_windows_that_a_kill_would_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = Lines(config=config_hash(experiment()))
    for number in range(3):
        log.request(f"u{number}", "plain", time.time() - 60.0)
    log.write(tmp_path / "log")
    file = written(tmp_path / "experiments", kill=True)
    first, unheard, windows = checked(capsys, file, "--log", tmp_path / "log")
    assert (
        first == "log: 3 requests count under this version of the file, in phase 0 3 units; 0 requests do not"
    )
    assert unheard == "log: no server has said yet that it is killed or drains"
    assert windows.startswith("log: 3 units have an open window, the last one until ")


def test_a_report_counts_what_an_earlier_file_was_called(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under the first releases `owner` was edited: 5 units are of a file that nothing else knows."""
    log = Lines(config=legacy_hash(experiment(owner="before")))
    for number in range(5):
        log.request(f"u{number}", "plain", time.time() - 10 * 86_400.0)
    log.write(tmp_path / "log")
    before = written(tmp_path / "before", owner="before")
    argv = ["ab", "report", str(file), "--log", str(tmp_path / "log")]
    for more, units in [([], 0), (["--before", str(before)], 5)]:
        assert cli.main([*argv, *more]) == 0
        assert f"{units} units analysed" in capsys.readouterr().out


def _typo(file: Path) -> list[str]:
    written(file.parent, ownr="me")
    return ["check", str(file)]


def _bad_sampler(file: Path) -> list[str]:
    arm = {"name": "power", "sampler": {"sampler": "power", "alpha": "four"}, "weight": 5000}
    written(file.parent, arms=[BEFORE["arms"][0], arm])
    return ["check", str(file)]


def _not_plain(file: Path) -> list[str]:
    arm = {"name": "plain", "sampler": {"sampler": "none", "alpha": 4.0}, "weight": 5000, "control": "plain"}
    written(file.parent, arms=[arm, BEFORE["arms"][1]])
    return ["check", str(file.parent)]


def _twice(file: Path) -> list[str]:
    (file.parent / "copy.yaml").write_text(file.read_text())
    return ["check", str(file.parent)]


def _empty(file: Path) -> list[str]:
    file.unlink()
    return ["check", str(file.parent)]


def _before_is_another(file: Path) -> list[str]:
    return ["check", str(file), "--before", str(written(file.parent / "other", "another"))]


def _report_before_is_another(file: Path) -> list[str]:
    before = written(file.parent / "other", "another")
    return ["report", str(file), "--log", str(file.parent), "--before", str(before)]


def _no_log(file: Path) -> list[str]:
    return ["report", str(file), "--log", str(file.parent / "nowhere")]


def _no_file(file: Path) -> list[str]:
    return ["report", str(file) + "x", "--log", str(file.parent)]


def _no_phase(file: Path) -> list[str]:
    return ["report", str(file), "--log", str(file.parent), "--phase", "1"]


def _bad_state(file: Path) -> list[str]:
    state_path(file).write_text("{")
    return ["report", str(file), "--log", str(file.parent)]


def _other_schema(file: Path) -> list[str]:
    (file.parent / "a.jsonl").write_text('{"version":9}\n')
    return ["report", str(file), "--log", str(file.parent)]


def _no_place_for_the_page(file: Path) -> list[str]:
    return ["report", str(file), "--log", str(file.parent), "--html", str(file.parent / "no" / "r.html")]


def _no_ramp(file: Path) -> list[str]:
    return ["ramp", str(file), "--log", str(file.parent), "--once"]


def _bad_table(file: Path) -> list[str]:
    table = file.parent / "o.csv"
    table.write_text("exposure_id,metric\nx,y\n")
    return ["ingest", str(table), "--log", str(file.parent)]


def _no_base(file: Path) -> list[str]:
    return ["simulate", str(file)]


def _bad_share(file: Path) -> list[str]:
    return ["simulate", str(file), "--base=thumbs=0.3", "--intra-unit-correlation=2"]


@pytest.mark.parametrize(
    ("prepare", "problem"),
    [
        (_typo, "field 'ownr'"),
        (_bad_sampler, "arms.1.sampler.alpha"),
        (_not_plain, "means nothing without a sampler"),
        (_twice, "is also the name of the experiment"),
        (_empty, "there is no *.yaml in it"),
        (_before_is_another, "field 'name': 'another', not power-vs-plain"),
        (_report_before_is_another, "field 'name': 'another', not power-vs-plain"),
        (_no_log, "is no directory"),
        (_no_file, "power-vs-plain.yamlx"),
        (_no_phase, "--phase: there is no phase 1"),
        (_bad_state, "power-vs-plain.state.json"),
        (_other_schema, "a.jsonl:1: version: '9' is not 1"),
        (_no_place_for_the_page, "No such file or directory"),
        (_no_ramp, "field 'ramp'"),
        (_bad_table, "line 2, exposure_id"),
        (_no_base, "base."),
        (_bad_share, "--intra-unit-correlation: "),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    prepare: Callable[[Path], list[str]], problem: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ab", *prepare(file)]) == 2
    err = capsys.readouterr().err
    assert problem in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "argv",
    [
        ["report", "e.yaml", "--log", "d", "--now", "2026-01-01T00:00:00"],
        ["report", "e.yaml", "--log", "d", "--now", "soon"],
        *(["report", "e.yaml", "--log", "d", "--now", now] for now in ("nan", "inf", "-inf", "-1", "1e12")),
        ["report", "e.yaml", "--log", "d", "--now", f"{time.time() * 1000:.0f}"],
        ["report", "e.yaml", "--log", "d", "--now", f"{time.time() + 86_400:.0f}"],
        ["report", "e.yaml", "--log", "d", "--now", "2999-01-01T00:00:00Z"],
        ["ramp", "e.yaml", "--log", "d", "--every", "0"],
        ["simulate", "e.yaml", "--base", "thumbs"],
        ["report", "e.yaml"],
        [],
    ],
)
def test_bad_options_are_refused_by_the_parser(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["ab", *argv])
    assert ended.value.code == 2
    assert "usage: sglang-power ab" in capsys.readouterr().err


def test_a_moment_that_cannot_be_is_told_with_its_value_and_a_remedy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["ab", "report", "e.yaml", "--log", "d", "--now", "inf"])
    told = "--now: 'inf' is not between 1970 and now; give seconds, not milliseconds, or ISO 8601"
    assert told in capsys.readouterr().err


def test_a_missing_extra_is_named(file: Path, tmp_path: Path) -> None:
    """In a process of its own, where ville cannot be imported."""
    script = (
        "import sys\n"
        "sys.modules['ville'] = None\n"
        "from sglang_power.cli import main\n"
        f"sys.exit(main(['ab', 'report', {str(file)!r}, '--log', {str(tmp_path)!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.endswith("ville is missing: pip install '.[ab]' in a clone of sglang-power\n")


def test_other_commands_import_nothing_of_the_analysis() -> None:
    script = (
        "import sys\n"
        "import sglang_power.cli\n"
        "print(sorted({'ville', 'scipy', 'matplotlib', 'torch', 'sglang'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
