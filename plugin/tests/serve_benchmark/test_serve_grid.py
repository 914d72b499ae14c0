"""Rows, loads and workloads of the benchmark: what is compared. Error rate 0."""

from __future__ import annotations

from pathlib import Path

import pytest
from serve_rows import workload
from sglang_power.errors import ConfigError
from sglang_power.serve_benchmark.grid import QUICK, Options, RowSpec, row_names, row_specs, workloads
from sglang_power.serve_benchmark.workloads import Task, Workload, read_workload

NAMES = [
    "plain",
    "power_prefetch_8",
    "power_prefetch_32",
    "power_uniform",
    "power",
    "naive",
    "published",
    "fast_exact",
    "smc_8",
    "smc",
    "smc_exact",
    "perfect",
    "vote",
    "vote_decided",
]


def named(options: Options) -> dict[str, RowSpec]:
    return {row.name: row for row in row_specs(workload(), options)}


def test_the_default_grid_holds_every_row_of_the_comparison() -> None:
    assert row_names(Options()) == NAMES
    rows = named(Options())
    assert (rows["smc_exact"].params["particles"], rows["smc_exact"].params["runs"]) == (8, 4)
    assert (rows["smc"].params["particles"], rows["smc"].params["runs"]) == (16, 1)
    assert rows["fast_exact"].params == {"preset": "fast-exact"}
    assert rows["vote"].params["stopping"] == "never"
    assert rows["vote_decided"].params == {
        **rows["vote"].params,
        "stopping": "decided",
        **workload().deciding,
    }


def test_the_compared_chains_have_the_same_parameters() -> None:
    rows = named(Options())
    chain = {name: value for name, value in rows["power_uniform"].params.items() if name != "sampler"}
    assert chain == dict(rows["naive"].params) == dict(rows["published"].params)
    assert {**rows["power_uniform"].params, "prefetch": 8} == rows["power_prefetch_8"].params
    assert chain["proposal_temperature"] == 1.0, "plain log probabilities state no other law"


@pytest.mark.parametrize(
    ("row", "loads"),
    [
        ("plain", [1, 8, 32, "open"]),
        ("smc", [1, 8, 32, "open"]),
        ("fast_exact", [1, 8, 32, "open"]),
        ("power", [1, 8, 32, "open"]),
        ("naive", [1, 32]),
        ("smc_8", [1, 32]),
        ("published", [1]),
    ],
)
def test_some_rows_are_measured_under_more_loads(row: str, loads: list[object]) -> None:
    assert list(named(Options())[row].loads(Options())) == loads


def test_longer_grids_by_options() -> None:
    options = Options(alphas=(2.0, 4.0), particles=(4, 8), runs=(1, 4), prefetch=(2,))
    rows = row_specs(workload(), options)
    assert [row.params["alpha"] for row in rows if row.name == "power"] == [2.0, 4.0]
    assert [row.name for row in rows if row.client == "plugin"].count("fast_exact") == 2
    assert {row.name for row in rows if row.name.startswith("smc")} == {
        "smc_4",
        "smc_8",
        "smc_4x4",
        "smc_exact",
    }
    assert sum(row.name.startswith("vote") for row in rows) == 2, "a vote has no exponent of its own"
    horizons = workloads([workload()], Options(horizons=(64, 256)))
    assert [each.max_new_tokens for each in horizons] == [64, 256]
    assert workloads([workload()], Options()) == [workload()]


def test_rows_can_be_chosen_and_plain_is_always_there() -> None:
    assert list(named(Options(rows=("smc",)))) == ["plain", "smc"]


def test_a_quick_grid_has_one_load() -> None:
    assert {tuple(row.loads(QUICK)) for row in named(QUICK).values()} == {(4,), (4, "open"), (1,)}


def test_what_a_preset_stands_for_is_shown() -> None:
    row = RowSpec("fast_exact", "plugin", {"preset": "fast-exact", "alpha": 2.0})
    shown = row.shown({"fast-exact": {"sampler": "smc", "alpha": 4.0}}, workload())
    assert shown == {"preset": "fast-exact", "sampler": "smc", "alpha": 2.0, "max_new_tokens": 16}


def test_answers_are_graded_by_the_first_match() -> None:
    graded = Workload("W", [Task("1+1:", "2")], 8, r"A(\d)")
    (task,) = graded.tasks
    assert graded.is_correct(task, "w1+1=2;A2.A3.") is True
    assert graded.is_correct(task, "A3.A2.") is False
    assert graded.is_correct(task, "2") is False
    assert graded.is_correct(Task("1+1:"), "A2.") is None
    assert Workload("W", [task], 8, r"\d+").is_correct(task, "is 2 or 3") is True


def test_prompts_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "sums.jsonl"
    path.write_text('{"text": "1+1=", "answer": 2}\n\n{"prompt": "2+2="}\n')
    read = read_workload(path, 32, r"\d")
    assert (read.name, read.max_new_tokens) == ("sums", 32)
    assert list(read.tasks) == [Task("1+1=", "2"), Task("2+2=")]
    assert read.prompts != workload().prompts
    (tmp_path / "plain.txt").write_text("one\ntwo\n")
    assert [task.text for task in read_workload(tmp_path / "plain.txt", 32, None).tasks] == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "no prompts"),
        ("{", "line 1: not JSON"),
        ('{"answer": 1}', "line 1: an object with text or prompt"),
    ],
)
def test_a_bad_file_is_told_with_its_line(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError, match=problem):
        read_workload(path, 32, None)
    with pytest.raises(ConfigError, match="gone"):
        read_workload(tmp_path / "gone.txt", 32, None)
