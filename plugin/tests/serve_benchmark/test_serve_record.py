"""serve.json and what is made of it: names, resuming, verdicts, the page. Error rate 0."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from serve_rows import row
from sglang_power.errors import ConfigError
from sglang_power.serve_benchmark import page, plots
from sglang_power.serve_benchmark.driver import Gap
from sglang_power.serve_benchmark.record import Record, Row
from sglang_power.serve_benchmark.targets import TARGETS, judge

NAMES = [
    *["model", "workload", "sampler", "params", "concurrency"],
    *["decoded_per_returned", "prefilled_per_returned", "depth_per_returned", "wall_vs_plain"],
    *["answers_per_minute", "p50_s", "p95_s", "p99_s", "accuracy", "ci95"],
]
"""Of a row, as they were fixed."""

FURTHER = {
    *["answers", "returned_per_answer", "extend_passes_per_answer", "decode_passes_per_answer"],
    *["arrivals_per_minute", "effort"],
}


def record(*rows: Row) -> Record:
    versions = {"sglang": "0.5.23", "sglang-power": "0.1.0"}
    return Record(hardware="a machine", versions=versions, command="bench serve", rows=rows)


def test_the_file_has_the_fixed_names_and_a_line_per_row(tmp_path: Path) -> None:
    path = tmp_path / "serve.json"
    record(row(), row(sampler="smc")).write(path)
    told = json.loads(path.read_text())
    assert list(told) == ["hardware", "versions", "command", "rows"]
    assert list(told["rows"][0])[: len(NAMES)] == NAMES
    assert set(told["rows"][0]) == {*NAMES, *FURTHER}
    assert sum(line.startswith("  {") for line in path.read_text().splitlines()) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["serve.json"]


def test_figures_are_rounded_and_settings_are_not(tmp_path: Path) -> None:
    path = tmp_path / "serve.json"
    exact = row(p50_s=0.123456789, params={"alpha": 1.23456789, "max_new_tokens": 8})
    record(exact).write(path)
    (read,) = Record.read(path).rows
    assert read.p50_s == 0.12346
    assert read.params == exact.params
    assert read.ci95 == exact.ci95


def test_a_record_goes_on_where_the_file_ended(tmp_path: Path) -> None:
    path = tmp_path / "serve.json"
    assert record().resumed(path) == record()
    record(row()).write(path)
    assert record().resumed(path).rows == (row(),)
    other = Record(hardware="another machine", versions=record().versions, command="")
    with pytest.raises(ConfigError, match="--fresh"):
        other.resumed(path)


@pytest.mark.parametrize("content", ["", "[]", '{"hardware": 1}', '{"hardware": "h", "rows": []}'])
def test_another_file_is_not_overwritten(tmp_path: Path, content: str) -> None:
    path = tmp_path / "serve.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="write to another folder"):
        record().resumed(path)


def test_a_row_that_is_measured_again_takes_the_place_of_the_old_one() -> None:
    first, again = row(sampler="smc", p50_s=1.0), row(sampler="smc", p50_s=2.0)
    others = [
        row(sampler="smc", concurrency=32),
        row(sampler="smc", params={"alpha": 2.0, "max_new_tokens": 96}),
        row(sampler="smc", params={"max_new_tokens": 64}),
        row(sampler="smc", workload="Q"),
        row(),
    ]
    assert record(first, *others).with_row(again).rows == (*others, again)


def measured() -> list[Row]:
    """Enough rows of R for every verdict on it."""
    smc = {"sampler": "smc", "depth_per_returned": 1.1}
    return [
        row(),
        row(**smc),
        row(sampler="smc_exact", depth_per_returned=1.3),
        row(sampler="power", p50_s=9.0, wall_vs_plain=90.0),
        row(sampler="fast_exact", p50_s=0.5, wall_vs_plain=5.0),
        row(sampler="fast_exact", concurrency=32, answers_per_minute=400.0, accuracy=0.25),
        row(sampler="naive", concurrency=32, answers_per_minute=100.0, accuracy=1.0),
        row(sampler="power_prefetch_8", concurrency=32, answers_per_minute=200.0),
        row(sampler="power_uniform", concurrency=32, extend_passes_per_answer=4.0),
        row(sampler="published", answers_per_minute=20.0),
        row(sampler="vote", decoded_per_returned=8.0),
        row(sampler="vote_decided", decoded_per_returned=7.0),
    ]


def test_targets_are_judged_by_rows_of_one_workload() -> None:
    verdicts = {
        verdict.target.words: verdict for verdict in judge(measured()) if verdict.target.workload == "R"
    }
    results = {words: verdict.result for words, verdict in verdicts.items()}
    assert results["depth of smc, N 16"] == "met"
    assert results["depth of smc, 8 x 4"] == "missed"
    assert verdicts["power's median latency by fast-exact's, one client"].measured == 18.0
    assert results["answers of fast-exact by the naive client's, 32 clients"] == "met"
    assert results["p that fast-exact is right less often than the naive client"] == "missed"
    assert verdicts["extend passes of prefetch 8 by those of prefetch 1, 32 clients"].measured == 0.25
    assert results["answers of fast-exact, 32 clients, by those of the published algorithm"] == "met"
    assert results["decoded tokens of a vote that stops when decided"] == "missed"
    assert "not measured" not in results.values()
    assert {verdict.result for verdict in judge([row(workload="Q")])} == {"not measured"}
    assert len(judge([])) == len(TARGETS)


def test_a_missing_count_of_passes_is_not_judged() -> None:
    silent = [each.model_copy(update={"extend_passes_per_answer": None}) for each in measured()]
    told = {
        verdict.target.words: verdict.result for verdict in judge(silent) if verdict.target.workload == "R"
    }
    assert told["extend passes of prefetch 8 by those of prefetch 1, 32 clients"] == "not measured"


def test_the_page_shows_every_row_and_what_is_missing() -> None:
    rows = [*measured(), row(concurrency="open", arrivals_per_minute=300.0, accuracy=None, ci95=None)]
    gaps = [Gap("R", "perfect", "sampler='perfect': unknown sampler")]
    told = page.render(record(*rows), gaps, [Gap("R", "smc under load 32", "HTTP 500")])
    assert "a machine; sglang 0.5.23, sglang-power 0.1.0; `bench serve`." in told
    assert "## R, at most 96 tokens" in told
    assert "| open, 300 a minute |" in told
    assert "| fast_exact | 32 | 0.250 (0.25 to 0.75) |" in told
    assert "left out: R perfect: sampler='perfect': unknown sampler" in told
    assert "Failed: R smc under load 32: HTTP 500" in told
    tables = [line for line in told.splitlines() if line.startswith("| plain |")]
    assert [line.split("|")[2].strip() for line in tables] == ["1", "open, 300 a minute"]


def test_the_guide_shows_a_line_per_row() -> None:
    told = page.short(record(*measured()), [], [])
    lines = [line for line in told.splitlines() if line.startswith("| fast_exact |")]
    assert lines == ["| fast_exact | 0.250 (0.25 to 0.75) | 1 | 1 | 5 | 600 | 400 | 1 |"]
    assert "answers / min, 32 clients" in told


def test_pictures_are_drawn_for_whatever_was_measured(tmp_path: Path) -> None:
    rows = [*measured(), row(workload="Q"), row(workload="Q", concurrency="open")]
    paths = plots.draw(record(*rows), tmp_path)
    assert [path.name for path in paths] == ["serve_latency.png", "serve_load.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert plots.draw(record(), tmp_path) == paths
