"""`sglang-power bench serve --quick` on the built-in model: a row is measured, or said not to be served."""

from __future__ import annotations

from pathlib import Path

import pytest
from sglang_power import cli
from sglang_power.serve_benchmark.driver import Gap
from sglang_power.serve_benchmark.grid import QUICK, row_names
from sglang_power.serve_benchmark.record import Record
from sglang_power.serve_benchmark.session import Results

from integration_tests.benchmarks import serve
from integration_tests.pivot.problems import FAMILIES, problems, worked_completion
from integration_tests.server import PIVOT_MODEL, Server


def test_the_problems_are_graded_as_everywhere_else() -> None:
    for workload, family in zip(serve.workloads(8, quick=False), FAMILIES, strict=True):
        assert (workload.name, len(workload.tasks)) == (family, 8)
        for problem, task in zip(problems(family, 8, serve.SEED), workload.tasks, strict=True):
            assert task.text == problem.text
            assert workload.is_correct(task, worked_completion(problem)) is True
            assert workload.is_correct(task, f"A{(problem.answer + 1) % 10}.") is False
    assert [workload.name for workload in serve.workloads(4, quick=True)] == ["R"]


def test_the_guide_gets_what_was_measured(tmp_path: Path) -> None:
    guide = tmp_path / "results.md"
    guide.write_text("before\n<!-- serve -->\nold\n<!-- /serve -->\nafter\n")
    record = Record(hardware="here", versions={"sglang": "1"}, command="bench serve")
    serve.renew(Results(record, [Gap("R", "smc", "unknown sampler")], [], []), guide)
    told = guide.read_text()
    assert told.startswith("before\n<!-- serve -->\nhere; sglang 1; `bench serve`.")
    assert told.endswith("R smc: unknown sampler\n<!-- /serve -->\nafter\n")
    assert "old" not in told
    assert serve.GUIDE.read_text().count("<!-- serve -->") == 1


@pytest.mark.server
@pytest.mark.long
def test_a_quick_run_measures_every_row_that_the_server_knows(
    pivot_server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "serve", "--quick", "--url", pivot_server.url]
    command += ["--model-path", str(PIVOT_MODEL), "--output", str(tmp_path)]
    assert cli.main(command) == 0, "no cell failed"
    record = Record.read(tmp_path / "serve.json")
    measured = {row.sampler for row in record.rows}
    printed = capsys.readouterr().out
    missing = {name for name in row_names(QUICK) if f"left out: R {name}: " in printed}
    assert measured >= {"plain", "power", "power_uniform", "naive", "published"}
    assert measured | missing == set(row_names(QUICK))
    assert not measured & missing
    for row in record.rows:
        assert row.answers == QUICK.answers
        assert row.decoded_per_returned >= 1.0
        assert (row.decode_passes_per_answer is None) == (row.sampler == "published")
    assert {row.concurrency for row in record.rows if row.sampler == "power"} == {4, "open"}
