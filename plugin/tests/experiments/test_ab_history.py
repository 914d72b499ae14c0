"""Experiments that are killed, drained and taken up again while they run: which units are analysed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from ab_lines import CONFIG, HOUR, Lines, experiment
from sglang_power.experiments.analysis import show
from sglang_power.experiments.analysis.report import report
from sglang_power.experiments.analysis.requests import Scope, joined, scope_of
from sglang_power.experiments.analysis.results import Report
from sglang_power.experiments.analysis.units import population
from sglang_power.experiments.versions import config_hash, legacy_hash, rules_hash

GRACE = experiment().completion_grace_s
NOW = 100 * HOUR


def analysed(log: Path, now: float = NOW, **changes: Any) -> tuple[list[str], dict[str, int]]:
    """Units in the analysis, and reasons of exclusion with their counts."""
    found = joined(log, Scope(experiment(**changes), CONFIG, 0, now))
    people = population(found)
    return [unit.name for unit in people.kept if found.is_closed(unit)], dict(
        found.excluded + people.excluded
    )


def told(log: Path, now: float = NOW, **changes: Any) -> Report:
    return report(log, Scope(experiment(**changes), CONFIG, 0, now))


def arrivals(*hours: float) -> Lines:
    """Units called by the hour of their only request."""
    log = Lines()
    for hour in hours:
        log.request(f"{hour:g}", "plain", hour * HOUR)
    return log


def test_after_a_kill_that_was_taken_back_new_units_count_again(tmp_path: Path) -> None:
    """Two servers hear of the kill at 3:00 and a minute later, of its end at 6:00 and a minute later."""
    log = arrivals(1.0, 1.9, 2.5, 2.99, 3.005, 6.005, 6.5, 8.0)
    for at, why in [(3.0, "killed"), (3.0 + 1 / 60, "killed"), (6.0, "loaded"), (6.0 + 1 / 60, "loaded")]:
        log.change(at * HOUR, why)  # type: ignore[arg-type]
    units, excluded = analysed(log.write(tmp_path))
    assert units == ["1", "1.9", "6.005", "6.5", "8"]
    assert excluded == {"cut_units": 2, "after_kill": 1}


def test_a_unit_that_a_kill_cut_off_stays_out_when_it_comes_back(tmp_path: Path) -> None:
    log = arrivals(1.0)
    log.kill(1.5 * HOUR)
    log.change(1.75 * HOUR, "loaded")
    log.request("1", "plain", 1.8 * HOUR)
    log.request("new", "power", 1.8 * HOUR)
    units, excluded = analysed(log.write(tmp_path))
    assert (units, excluded) == (["new"], {"cut_units": 1})


def test_servers_that_start_while_it_is_killed_or_after_it_begin_and_end_nothing(tmp_path: Path) -> None:
    """The processes that heard of the kill are gone when it ends: their successors say that they enrol."""
    log = arrivals(1.0, 9.0)
    log.kill(3.0 * HOUR)
    log.kill(5.0 * HOUR)
    log.change(7.0 * HOUR, "loaded")
    assert analysed(log.write(tmp_path))[0] == ["1", "9"]


def test_a_kill_cuts_the_window_of_a_switchback_that_it_falls_into_and_no_other(tmp_path: Path) -> None:
    """Windows of ten minutes; what is said of them counts for an hour."""
    changes: dict[str, Any] = {
        "kind": "switchback",
        "unit": None,
        "switchback": {"pool": "a", "window_s": 600.0, "washout_s": 60.0},
    }
    log = Lines()
    for number in range(4):
        log.request(str(number), "plain", 600.0 * number + 100.0)
    log.kill(600.0 * 2 + 300.0)
    log.change(600.0 * 3, "loaded")
    units, excluded = analysed(log.write(tmp_path), **changes)
    assert (units, excluded) == (["0", "1", "3"], {"cut_units": 1})


def test_a_file_that_one_server_lost_for_a_while_kills_nothing(tmp_path: Path) -> None:
    log = arrivals(1.0, 3.2, 9.0)
    log.change(3.0 * HOUR, "removed")
    assert analysed(log.write(tmp_path)) == (["1", "3.2", "9"], {})


def test_a_kill_of_another_version_of_the_file_is_one(tmp_path: Path) -> None:
    """The owner was edited with it, under a release that hashed the whole file."""
    log = arrivals(1.0, 2.5)
    log.change(3.0 * HOUR, "killed", config="another")
    assert analysed(log.write(tmp_path)) == (["1"], {"cut_units": 1})


def test_a_drain_admits_nobody_new_and_lets_windows_close(tmp_path: Path) -> None:
    log = arrivals(1.0, 2.5, 3.5)
    log.change(3.0 * HOUR, "draining")
    log.change(3.1 * HOUR, "draining")
    log.request("2.5", "plain", 3.4 * HOUR, outcome="error")
    log.write(tmp_path)
    units, excluded = analysed(tmp_path, 3.45 * HOUR, drain=True)
    assert (units, excluded) == (["1"], {"open_windows": 1})
    units, excluded = analysed(tmp_path, drain=True)
    assert (units, excluded) == (["1", "2.5"], {"after_drain": 1})
    found = told(tmp_path, drain=True)
    assert found.arms[0].means["failed"] == 0.25, "requests after the drain began count"
    assert (found.draining, found.last_window) == (3.0 * HOUR, 3.5 * HOUR + GRACE)
    assert found.srm.units["plain"] == 2
    assert "and all windows are closed: end it with `kill: true`." in " ".join(show.text(found).split())
    early = told(tmp_path, 3.45 * HOUR, drain=True)
    said = "the last window closes at 1970-01-01 03:40 UTC"
    assert said in " ".join(show.text(early).split())


def test_a_kill_after_the_drain_cuts_nobody_off(tmp_path: Path) -> None:
    log = arrivals(1.0, 2.5, 3.5)
    log.change(3.0 * HOUR, "draining")
    log.kill(5.0 * HOUR)
    units, excluded = analysed(log.write(tmp_path), kill=True)
    assert (units, excluded) == (["1", "2.5"], {"after_drain": 1})


def test_a_drain_that_was_taken_back_loses_nothing(tmp_path: Path) -> None:
    log = arrivals(1.0, 2.5, 3.5, 5.0)
    log.change(3.0 * HOUR, "draining")
    log.change(4.0 * HOUR, "loaded")
    assert analysed(log.write(tmp_path)) == (["1", "2.5", "3.5", "5"], {})


def test_a_drain_that_no_server_has_heard_of_has_not_begun(tmp_path: Path) -> None:
    assert analysed(arrivals(1.0, 2.5).write(tmp_path), drain=True)[0] == ["1", "2.5"]


def test_what_was_known_earlier_is_the_beginning_of_what_is_known_now(tmp_path: Path) -> None:
    """Kills and drains come and go; the order of first enrolments holds whatever became of them."""
    chance, log = random.Random(5), Lines()
    for number in range(400):
        at = chance.uniform(0.0, 12 * HOUR)
        exposure = log.enrol(f"u{number % 150}", "plain", at)
        log.complete(exposure, "plain", at + chance.expovariate(4 / HOUR))
    for at, why in [(2.0, "killed"), (2.5, "loaded"), (5.0, "draining"), (7.0, "loaded"), (9.0, "killed")]:
        log.change(at * HOUR, why)  # type: ignore[arg-type]
    log.write(tmp_path)

    def observed(now: float) -> tuple[list[str], list[float]]:
        found = population(joined(tmp_path, Scope(experiment(), CONFIG, 0, now))).observations
        return list(found.arms), found.columns["failed"].values.tolist()

    arms, values = observed(NOW)
    assert len(values) > 50
    for quarter in range(60):
        then, seen = observed(quarter * HOUR / 4)
        assert then == arms[: len(then)]
        assert seen == values[: len(seen)]


def test_lines_of_the_first_releases_are_read_beside_new_ones(tmp_path: Path) -> None:
    """Before the update, after it, and after the owner was edited: one experiment."""
    was, now = experiment(), experiment(owner="somebody else")
    log = Lines(config=legacy_hash(was))
    log.request("old", "plain", 1.0 * HOUR)
    log.config = config_hash(was)
    log.change(2.0 * HOUR, "loaded", legacy=legacy_hash(was), rules=rules_hash(was))
    log.request("new", "power", 2.5 * HOUR)
    log.config = config_hash(now)
    log.request("edited", "power", 3.0 * HOUR)
    log.write(tmp_path)
    for each in (was, now):
        found = report(tmp_path, scope_of(each, 0, NOW))
        assert (found.units, found.excluded.other_configuration, found.other_rules) == (3, 0, None)


def test_rules_that_were_edited_after_data_came_in_are_told(tmp_path: Path) -> None:
    stricter = experiment(alpha=0.01)
    log = arrivals(1.0, 2.5, 4.0)
    log.change(0.5 * HOUR, "loaded", rules=rules_hash(experiment(alpha=0.2)))
    log.change(0.6 * HOUR, "loaded", rules=rules_hash(experiment()))
    log.change(3.0 * HOUR, "loaded", rules=rules_hash(stricter))
    log.write(tmp_path)
    assert told(tmp_path, alpha=0.01).other_rules == 3.0 * HOUR
    assert "Metrics, thresholds or windows were edited" in show.text(told(tmp_path, alpha=0.01))
    assert told(tmp_path, 2.9 * HOUR).other_rules is None, "an edit before there was any data is none"


@pytest.mark.parametrize("others", [0, 867])
def test_requests_of_another_version_are_a_warning(others: int, tmp_path: Path) -> None:
    log = arrivals(1.0)
    for number in range(others):
        log.enrol(f"u{number}", "plain", 1.0, config="another")
    text = " ".join(show.text(told(log.write(tmp_path))).split())
    warned = "WARNING: 867 requests were enrolled under another version of the experiment's file" in text
    assert warned is bool(others)
