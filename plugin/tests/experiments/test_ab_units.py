"""One row per unit: which lines count, which do not and why, and what a metric's value is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ab_lines import CONFIG, HOUR, Lines, experiment
from sglang_power.experiments.analysis.observations import Column
from sglang_power.experiments.analysis.requests import Joined, Scope, joined
from sglang_power.experiments.analysis.units import Population, population

GRACE = experiment().completion_grace_s


def read(log: Path, *, now: float = 100 * HOUR, **changes: Any) -> tuple[Population, dict[str, int]]:
    """Who is analysed, and every reason for which something is not, with its count."""
    found: Joined = joined(log, Scope(experiment(**changes), CONFIG, 0, now))
    people = population(found)
    return people, dict(found.excluded + people.excluded)


def values(people: Population, metric: str) -> list[float]:
    return [float(value) for value in people.observations.columns[metric].values]


def test_units_enter_in_order_of_their_first_enrolment_whatever_file_it_is_in(tmp_path: Path) -> None:
    log = Lines()
    log.request("late", "power", 30.0)
    log.request("early", "plain", 20.0)
    log.write(tmp_path, "a.jsonl")
    log.request("early", "plain", 10.0)
    log.request("middle", "plain", 15.0)
    log.write(tmp_path, "b.jsonl")
    people, excluded = read(tmp_path)
    assert [unit.name for unit in people.enrolled] == ["early", "middle", "late"]
    assert people.observations.arms == ["plain", "plain", "power"]
    assert len(people.requests["early"]) == 2
    assert excluded == {}


def test_a_unit_enters_when_its_window_closes(tmp_path: Path) -> None:
    log = Lines()
    log.request("u1", "plain", 0.0)
    log.request("u2", "power", 60.0)
    log.write(tmp_path)
    for now, rows, excluded in [
        (HOUR + GRACE - 1.0, 0, {"open_windows": 2}),
        (HOUR + GRACE, 1, {"open_windows": 1}),
        (HOUR + GRACE + 60.0, 2, {}),
    ]:
        people, reasons = read(tmp_path, now=now)
        assert (len(people.observations), reasons) == (rows, excluded)


def test_a_unit_belongs_to_the_arm_of_its_first_enrolment(tmp_path: Path) -> None:
    log = Lines()
    log.request("u1", "power", 0.0)
    log.request("u1", "plain", 5.0, outcome="error")
    people, _ = read(log.write(tmp_path))
    assert people.observations.arms == ["power"]
    assert values(people, "failed") == [0.5]


def _override(log: Lines) -> None:
    log.enrol("u2", "power", 1.0, override=True)


def _washout(log: Lines) -> None:
    log.enrol("u2", "power", 1.0, washout=True)


def _other_file(log: Lines) -> None:
    log.enrol("u2", "power", 1.0, config="another")


def _other_metric(log: Lines) -> None:
    log.say(FIRST, 1.0, 5.0, "unheard-of")


def _not_feedback(log: Lines) -> None:
    log.say(FIRST, 1.0, 5.0, "failed")


def _out_of_range(log: Lines) -> None:
    log.say(FIRST, 1.5, 5.0)


def _unmatched(log: Lines) -> None:
    log.say("nobody", 1.0, 5.0)
    log.complete("nobody", "plain", 5.0)


def _late(log: Lines) -> None:
    log.enrol("u1", "plain", HOUR + 1.0)
    log.say(FIRST, 1.0, HOUR + 1.0)


def _twice(log: Lines) -> None:
    log.complete(FIRST, "plain", 5.0, outcome="error")
    log.enrol("u9", "plain", 5.0, exposure_id=FIRST)


def _after_kill(log: Lines) -> None:
    log.kill(2 * HOUR)
    log.kill(2 * HOUR + 1.0)
    log.enrol("u2", "power", 2 * HOUR + 0.5)


FIRST = "power-vs-plain-00000001"


@pytest.mark.parametrize(
    ("spoil", "excluded"),
    [
        (_override, {"overrides": 1}),
        (_washout, {"washout": 1}),
        (_other_file, {"other_configuration": 1}),
        (_other_metric, {"unknown_metric": 1}),
        (_not_feedback, {"unknown_metric": 1}),
        (_out_of_range, {"out_of_range": 1}),
        (_unmatched, {"unmatched_feedback": 1, "unmatched_completions": 1}),
        (_late, {"late_outcomes": 2}),
        (_twice, {"duplicate_lines": 2}),
        (_after_kill, {"after_kill": 1}),
    ],
)
def test_what_does_not_count_changes_nothing_and_is_counted(
    spoil: Callable[[Lines], None], excluded: dict[str, int], tmp_path: Path
) -> None:
    log = Lines()
    assert log.request("u1", "plain", 0.0) == FIRST
    log.say(FIRST, 0.25, 2.0)
    spoil(log)
    people, reasons = read(log.write(tmp_path))
    assert reasons == excluded
    assert [unit.name for unit in people.enrolled] == ["u1"]
    assert values(people, "thumbs") == [0.25]
    assert values(people, "failed") == [0.0]
    assert values(people, "tokens") == [15.0]


def test_of_several_values_for_one_answer_the_last_within_the_window_counts(tmp_path: Path) -> None:
    log = Lines()
    exposure = log.request("u1", "plain", 0.0)
    for value, at in [(0.5, 30.0), (0.75, 40.0), (1.0, 20.0), (0.0, HOUR + 1.0)]:
        log.say(exposure, value, at)
    people, reasons = read(log.write(tmp_path))
    assert values(people, "thumbs") == [0.75]
    assert reasons == {"duplicate_feedback": 2, "late_outcomes": 1}


def test_a_tester_is_out_with_all_requests(tmp_path: Path) -> None:
    log = Lines()
    log.request("tester", "plain", 0.0)
    log.enrol("tester", "power", 1.0, override=True)
    log.request("user", "plain", 2.0)
    people, reasons = read(log.write(tmp_path))
    assert [unit.name for unit in people.enrolled] == ["user"]
    assert reasons == {"overrides": 2}


def test_a_kill_freezes_the_analysis(tmp_path: Path) -> None:
    log = Lines()
    log.request("closed", "plain", 0.0)
    slow = log.enrol("open", "power", 10.0)
    log.kill(HOUR + 5.0)
    log.complete(slow, "power", HOUR + 6.0)
    people, reasons = read(log.write(tmp_path))
    assert people.observations.arms == ["plain"]
    assert reasons == {"cut_units": 1}


def test_a_kill_that_is_not_known_yet_does_nothing(tmp_path: Path) -> None:
    log = Lines()
    log.request("u1", "plain", 0.0)
    log.kill(2 * HOUR)
    people, reasons = read(log.write(tmp_path), now=1.5 * HOUR)
    assert (len(people.observations), reasons) == (1, {})


@pytest.mark.parametrize(
    ("end", "failed"), [(HOUR - 1.0, 0.0), (HOUR + 1.0, 0.0), (HOUR + GRACE, 0.0), (HOUR + GRACE + 1.0, 1.0)]
)
def test_a_request_is_judged_by_its_own_end_within_the_grace(
    end: float, failed: float, tmp_path: Path
) -> None:
    """Asked a second before the window of its unit closes; later than the grace it is lost."""
    log = Lines()
    slow = log.enrol("u1", "plain", HOUR - 1.0)
    log.request("u1", "plain", 0.0)
    log.complete(slow, "plain", end, decoded=40, prefilled=0)
    log.say(slow, 1.0, end)
    people, reasons = read(log.write(tmp_path))
    assert values(people, "failed") == [failed / 2]
    assert values(people, "tokens") == [15.0 if failed else 55.0]
    said_in_time = end <= HOUR
    assert values(people, "thumbs") == [1.0 if said_in_time else 0.0], "feedback has no grace"
    assert reasons.get("late_outcomes", 0) == (0 if said_in_time else 1) + (1 if failed else 0)


def test_slow_answers_at_the_end_of_windows_move_no_guardrail(tmp_path: Path) -> None:
    """500 units with one request each, of which 3 are answered after the window and 16 really fail."""
    log = Lines()
    for number in range(500):
        slow = log.enrol(f"u{number}", "power", 0.0)
        late = number < 3
        log.complete(
            slow, "power", HOUR + 30.0 if late else 5.0, outcome="error" if 3 <= number < 19 else "ok"
        )
    people, _ = read(log.write(tmp_path))
    assert sum(values(people, "failed")) / 500 == pytest.approx(16 / 500)


def test_later_lines_are_as_if_they_were_not_written_yet(tmp_path: Path) -> None:
    log = Lines()
    exposure = log.enrol("u1", "plain", 0.0)
    log.enrol("u2", "power", 20.0)
    log.complete(exposure, "plain", 20.0)
    log.say(exposure, 1.0, 20.0)
    log.kill(20.0)
    found = joined(log.write(tmp_path), Scope(experiment(), CONFIG, 0, 10.0))
    assert (list(found.units), found.history.killed, found.until) == (["u1"], None, 0.0)
    assert +found.excluded == {}


def test_other_experiments_in_the_same_log_are_not_unmatched(tmp_path: Path) -> None:
    other, log = Lines("other"), Lines()
    other.say(other.request("u1", "a", 0.0), 1.0, 2.0)
    other.write(tmp_path, "a.jsonl")
    log.request("u1", "plain", 0.0)
    people, reasons = read(log.write(tmp_path))
    assert (len(people.observations), reasons) == (1, {})


METRICS: dict[str, Any] = {
    "mean": {"source": "feedback", "low": -1.0, "high": 1.0, "absent": 0.5},
    "each": {"source": "feedback", "absent": 0.25, "per": "request"},
    "failed": {"source": "outcome", "outcomes": ["error", "lost"]},
    "slow": {"source": "latency", "over_ms": 1500.0},
    "late-start": {"source": "latency", "over_ms": 500.0, "of": "ttft"},
    "decoded": {"source": "tokens", "kinds": ["decoded"]},
    "gpu": {"source": "tokens", "gpu_seconds_per_token": {"decoded": 0.5, "prefilled": 0.25}},
}


def _two_units(directory: Path) -> Population:
    """One with six requests, one whose only request is lost."""
    log = Lines()
    said = [
        log.request("u1", "plain", 1.0, e2e_s=1.5, ttft_s=0.5),
        log.request("u1", "plain", 2.0, e2e_s=1.6, ttft_s=0.6),
        log.request("u1", "plain", 3.0, outcome="error", e2e_s=0.1, ttft_s=0.1, decoded=0, prefilled=0),
        log.request("u1", "plain", 4.0, outcome="fallback", e2e_s=1.0, decoded=30),
        log.request("u1", "plain", 5.0, outcome="disconnect", e2e_s=1.0, ttft_s=0.2, decoded=5),
        log.enrol("u1", "plain", 6.0),
    ]
    log.enrol("u2", "power", 7.0)
    for exposure, value in zip(said, [1.0, -1.0, 0.75], strict=False):
        for metric in ("mean", "each"):
            log.say(exposure, value, 10.0, metric)
    people, reasons = read(
        log.write(directory), metrics=METRICS, primary={"metric": "mean", "min_effect": 0.0}, guardrails=[]
    )
    assert reasons == {}
    return people


@pytest.mark.parametrize(
    ("metric", "first", "second"),
    [
        ("mean", 0.25, 0.5),
        ("failed", 2 / 6, 1.0),
        ("slow", 4 / 6, 1.0),
        ("late-start", 5 / 6, 1.0),
    ],
)
def test_a_metric_has_one_value_per_unit(metric: str, first: float, second: float, tmp_path: Path) -> None:
    made = _two_units(tmp_path).observations.columns[metric]
    assert made.counts is None
    assert made.values.tolist() == pytest.approx([first, second])


@pytest.mark.parametrize(
    ("metric", "sums", "counts"),
    [
        ("each", [0.75 + 3 * 0.25, 0.25], [6.0, 1.0]),
        ("decoded", [55.0, 0.0], [5.0, 0.0]),
        ("gpu", [0.5 * 55 + 0.25 * 20, 0.0], [5.0, 0.0]),
    ],
)
def test_a_ratio_is_a_sum_and_a_count(
    metric: str, sums: list[float], counts: list[float], tmp_path: Path
) -> None:
    made: Column = _two_units(tmp_path).observations.columns[metric]
    assert made.counts is not None
    assert made.values.tolist() == pytest.approx(sums)
    assert made.counts.tolist() == counts


def test_a_mean_of_values_at_a_bound_stays_within_it(tmp_path: Path) -> None:
    log = Lines()
    for at in range(3):
        log.say(log.request("u1", "plain", float(at)), 0.1, 10.0)
    thumbs = {"source": "feedback", "low": 0.0, "high": 0.1, "absent": 0.0}
    people, _ = read(
        log.write(tmp_path),
        metrics={"thumbs": thumbs},
        primary={"metric": "thumbs", "min_effect": 0.0},
        guardrails=[],
    )
    assert sum([0.1] * 3) / 3 > 0.1
    assert values(people, "thumbs") == [0.1]
