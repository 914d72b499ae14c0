"""Metrics of experiments, counted in processes of their own as a server's tokenizer workers do it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import ab_metrics_child
import pytest
from ab_metrics_child import completion, enrolment, experiment, shadow_run
from sglang_power.experiments import assignment
from sglang_power.experiments.counters import AssignmentTrouble, Counters, NotEnrolledReason

PREFIX = "sglang_power_experiment_"


def told_by(what: str, multiprocess: Path | None = None) -> Any:
    environment = {**os.environ} | ({"PROMETHEUS_MULTIPROC_DIR": str(multiprocess)} if multiprocess else {})
    command = [sys.executable, ab_metrics_child.__file__, what]
    told = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout)


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    samples: dict[str, float] = told_by("count_in_two_workers", tmp_path_factory.mktemp("metrics"))
    return samples


@pytest.mark.parametrize(
    ("sample", "value"),
    [
        ("enrolments_total,power,first", 4),
        ("not_enrolled_total,first,greedy", 2),
        ("not_enrolled_total,first,provider_timeout", 2),
        ("assignment_trouble_total,provider_timeout", 2),
        ("completions_total,power,first,ok", 2),
        ("completions_total,power,first,deadline", 2),
        ("latency_seconds_count,power,first", 4),
        ("latency_seconds_sum,power,first", 10_000.4),
        ("latency_seconds_bucket,power,first,0.1", 0),
        ("latency_seconds_bucket,power,first,0.3", 2),
        ("latency_seconds_bucket,power,first,1000.0", 2),
        ("latency_seconds_bucket,power,first,+Inf", 4),
        ("tokens_total,power,first,decoded", 40),
        ("tokens_total,power,first,prefilled", 12),
        ("shadow_runs_total,deep,first,ok", 2),
        ("tokens_total,deep,first,decoded", 14),
        ("tokens_total,deep,first,prefilled", 4),
        ("feedback_total,accepted", 2),
        ("reload_problems_total", 4),
        ("log_trouble_total,write", 2),
        ("log_trouble_total,sync", 2),
        ("log_lines_dropped_total", 2),
    ],
)
def test_workers_add_up(counted: dict[str, float], sample: str, value: float) -> None:
    assert counted[PREFIX + sample] == pytest.approx(value)


def test_the_state_of_an_experiment_is_what_the_last_worker_knew(counted: dict[str, float]) -> None:
    assert counted[PREFIX + "enrolling,first"] == 0
    assert counted[PREFIX + "phase,first"] == 1


def test_an_experiment_that_was_removed_enrols_nobody(counted: dict[str, float]) -> None:
    assert counted[PREFIX + "enrolling,second"] == 0
    assert PREFIX + "enrolling,never-loaded" not in counted


@pytest.mark.parametrize(
    "sample",
    [
        "enrolments_total,plain,first",
        "completions_total,plain,first,error",
        "completions_total,power,first,fallback",
        "not_enrolled_total,first,internal",
        "assignment_trouble_total,circuit_open",
        "log_trouble_total,full",
    ],
)
def test_what_has_not_happened_yet_is_zero_so_that_its_first_time_is_an_increase(
    counted: dict[str, float], sample: str
) -> None:
    assert counted[PREFIX + sample] == 0


def test_an_arm_that_is_never_served_has_no_enrolments(counted: dict[str, float]) -> None:
    assert PREFIX + "enrolments_total,deep,first" not in counted


def test_only_an_assignment_that_failed_is_an_alarm(counted: dict[str, float]) -> None:
    assert PREFIX + "assignment_trouble_total,greedy" not in counted


def test_a_server_without_metrics_imports_and_counts_nothing() -> None:
    assert told_by("count_nothing") == []


def test_every_reason_of_the_assignment_can_be_counted() -> None:
    reasons = {reason for part in get_args(assignment.Reason) for reason in get_args(part)}
    assert len(reasons) > 5
    assert reasons <= set(get_args(NotEnrolledReason))
    assert reasons - {"holdout", "namespace"} == set(get_args(AssignmentTrouble))


CALLS: dict[str, Callable[[Counters, str], None]] = {
    "enrolled": lambda counters, arm: counters.enrolled(experiment(), enrolment(arm)),
    "completed": lambda counters, arm: counters.completed(experiment(), completion(arm, "ok", 1.0)),
    "shadow_ran": lambda counters, arm: counters.shadow_ran(experiment(), shadow_run(arm)),
}


@pytest.mark.parametrize("arm", ["other", "", "Power", "first"])
@pytest.mark.parametrize("call", sorted(CALLS))
def test_an_arm_from_elsewhere_never_becomes_a_label(call: str, arm: str) -> None:
    with pytest.raises(ValueError, match="is no arm of experiment first"):
        CALLS[call](Counters(enabled=True), arm)
