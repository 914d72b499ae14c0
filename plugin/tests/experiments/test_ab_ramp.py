"""A ramp goes on only when a phase has surely shown no harm, and back as soon as it surely has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ab_lines import BEFORE, HOUR, Lines, experiment
from ab_reports import effect, full_report
from sglang_power.errors import ConfigError
from sglang_power.experiments.analysis import ramp
from sglang_power.experiments.analysis.ramp import next_state, obstacle, step
from sglang_power.experiments.analysis.report import report
from sglang_power.experiments.analysis.requests import Scope
from sglang_power.experiments.analysis.results import Report
from sglang_power.experiments.catalogue import read_experiment
from sglang_power.experiments.model import WHOLE, Experiment
from sglang_power.experiments.state import State, read_state, state_path, write_state
from sglang_power.experiments.versions import config_hash

CONFIGS = Path(__file__).parents[3] / "configs" / "experiments"
SHIPPED = [path for path in sorted(CONFIGS.glob("*.yaml")) if read_experiment(path).ramp]
WEEK = 168 * HOUR
RAMP = [
    {"weights": {"plain": 9000, "power": 1000}, "min_hours": 10.0, "min_units": 50},
    {"weights": {"plain": 5000, "power": 5000}, "min_hours": 10.0, "min_units": 50},
]
GOOD = effect("guardrail", "failed", -0.01, 0.01, direction="lower", threshold=0.02)
UNSURE = effect("guardrail", "failed", -0.01, 0.03, direction="lower", threshold=0.02)
SILENT = effect("guardrail", "failed", None, None, direction="lower", threshold=0.02)
HARMFUL = effect("guardrail", "failed", 0.03, 0.05, direction="lower", threshold=0.02)
WORSE = effect("primary", "thumbs", -0.05, -0.01)


def seen(*effects: Any, units: int = 50, began: float | None = 0.0, red: bool = False) -> Report:
    srm = full_report().srm.model_copy(update={"red": red})
    changes = {"effects": effects, "units": units, "began": began, "srm": srm}
    return full_report().model_copy(update=changes)


@pytest.mark.parametrize(
    ("report", "hours", "after"),
    [
        (seen(GOOD), 10.0, "on"),
        (seen(), 10.0, "on"),
        (seen(GOOD, WORSE), 10.0, "on"),  # Only guardrails roll back; the primary metric is for people.
        (seen(GOOD), 9.9, "stays"),
        (seen(GOOD, units=49), 10.0, "stays"),
        (seen(GOOD, began=None), 10.0, "stays"),
        (seen(GOOD, red=True), 10.0, "stays"),
        (seen(GOOD, UNSURE), 10.0, "stays"),
        (seen(GOOD, SILENT), 10.0, "stays"),
        (seen(GOOD, HARMFUL), 10.0, "back"),
        (seen(GOOD, HARMFUL, units=1), 0.1, "back"),
        (seen(GOOD, HARMFUL, red=True), 10.0, "back"),
    ],
)
def test_where_an_experiment_goes(report: Report, hours: float, after: str) -> None:
    state, now = State(phase=0, reason="begun", at=1.0), hours * HOUR
    found = next_state(report, experiment(ramp=RAMP), state, now)
    if after == "stays":
        assert found == state
        assert obstacle(report, experiment(ramp=RAMP), state, now) is not None
    else:
        assert (found.phase, found.killed) == ((1, False) if after == "on" else (0, True))
        assert found.at == now
        assert found.reason


def test_a_drain_goes_nowhere_but_back() -> None:
    """Another phase would end the windows that the drain lets close."""
    draining = experiment(ramp=RAMP, drain=True)
    assert next_state(seen(GOOD), draining, State(), 10.0 * HOUR) == State()
    assert "draining" in (obstacle(seen(GOOD), draining, State(), 10.0 * HOUR) or "")
    assert next_state(seen(HARMFUL), draining, State(), 10.0 * HOUR).killed


def test_hours_that_nobody_asks_for_are_not_told() -> None:
    at_once = [{**phase, "min_hours": 0.0} for phase in RAMP]
    said = obstacle(seen(GOOD, units=7), experiment(ramp=at_once), State(), HOUR)
    assert said == "7 of 50 units with a closed window"


def test_a_rollback_says_which_guardrail() -> None:
    found = next_state(seen(GOOD, HARMFUL), experiment(ramp=RAMP), State(), HOUR)
    assert found.reason == "failed of power against plain: +0.04, between +0.03 and +0.05, margin 0.02"


@pytest.mark.parametrize(
    ("state", "kill"), [(State(phase=1), False), (State(killed=True), False), (State(), True)]
)
def test_nothing_goes_on_from_the_last_phase_or_after_a_kill(state: State, kill: bool) -> None:
    assert next_state(seen(GOOD), experiment(ramp=RAMP, kill=kill), state, 99 * HOUR) == state


@pytest.mark.parametrize(("phase", "killed"), [(0, False), (1, False), (1, True)])
def test_harm_rolls_back_from_every_phase_and_once(phase: int, killed: bool) -> None:
    state = State(phase=phase, killed=killed, reason="before")
    found = next_state(seen(HARMFUL), experiment(ramp=RAMP), state, HOUR)
    assert (found.phase, found.killed) == (phase, True)
    assert (found.reason == "before") is killed


def played(directory: Path, *, failing: float, units: int = 2000) -> tuple[Path, Path]:
    """Experiment's file and log: half of the units have each arm, a share of power's requests fails."""
    log = Lines(config=config_hash(experiment(ramp=RAMP)))
    for number in range(units):
        arm = "power" if number % 10 == 9 else "plain"
        fails = arm == "power" and number % 1000 < 1000 * failing
        log.request(f"u{number}", arm, float(number), outcome="error" if fails else "ok")
    return directory / "power-vs-plain.yaml", log.write(directory / "log")


def test_a_step_advances_the_state_file(tmp_path: Path) -> None:
    file, log = played(tmp_path, failing=0.0)
    declared = experiment(ramp=RAMP)
    assert step(file, declared, log, now=2 * HOUR)[1].startswith("stays in phase 0: 2.0 of 10 hours")
    assert not state_path(file).exists()
    state, told = step(file, declared, log, now=11 * HOUR)
    assert told == "on to phase 1: phase 0 showed no harm in 2,000 units"
    assert read_state(state_path(file)) == state == State(phase=1, reason=state.reason, at=11 * HOUR)
    assert step(file, declared, log, now=12 * HOUR) == (state, "stays in phase 1: it is in its last phase")


def crowd(log: Lines, declared: Experiment, phase: int, units: int) -> None:
    """New units, spread over the arms as the phase says; nothing fails."""
    arms = [arm for arm, weight in declared.weights(phase).items() for _ in range(weight)]
    for number in range(units):
        arm = arms[number * 7919 % WHOLE]
        log.request(f"{phase}-{number}", arm, phase * WEEK + number, phase=phase)


@pytest.mark.long
@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda path: path.stem)
def test_the_shipped_ramps_can_go_to_their_end(shipped: Path, tmp_path: Path) -> None:
    declared = read_experiment(shipped)
    log = Lines(name=declared.name)
    for phase in range(len(declared.ramp)):
        log.config = config_hash(declared, phase)
        crowd(log, declared, phase, units=12_000)
        file, now = tmp_path / shipped.name, (phase + 2) * WEEK
        state, told = step(file, declared, log.write(tmp_path / "log"), now=now)
        last = phase + 1 == len(declared.ramp)
        assert state.phase == (phase if last else phase + 1), told
        assert ("it is in its last phase" in told) is last


def test_a_step_rolls_back(tmp_path: Path) -> None:
    file, log = played(tmp_path, failing=0.5)
    state, told = step(file, experiment(ramp=RAMP), log, now=2 * HOUR)
    assert state.killed
    assert told.startswith("rolled back, nobody is enrolled any more: failed of power against plain: +0.5")
    assert read_state(state_path(file)) == state
    again, told = step(file, experiment(ramp=RAMP), log, now=3 * HOUR)
    assert (again, told) == (state, f"killed in phase 0: {state.reason}")


@pytest.mark.parametrize("failing", [0.0, 0.5])
@pytest.mark.parametrize(
    "other",
    [State(killed=True, reason="the owner: stop now"), State(phase=1, reason="by hand")],
    ids=["killed", "moved on"],
)
def test_a_state_that_was_changed_while_the_log_was_read_is_left_alone(
    other: State, failing: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the look would go on or back; `test_a_step_...` show that both write if nobody interferes."""
    file, log = played(tmp_path, failing=failing)

    def slow(log: Path, scope: Scope) -> Report:
        write_state(state_path(file), other)
        return report(log, scope)

    monkeypatch.setattr(ramp, "report", slow)
    state, told = step(file, experiment(ramp=RAMP), log, now=11 * HOUR)
    assert state == other == read_state(state_path(file))
    assert told == "left as it is: power-vs-plain.state.json was changed while the log was read"


def test_a_phase_that_is_not_in_the_ramp_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    write_state(state_path(file), State(phase=2))
    with pytest.raises(ConfigError, match=r"e\.state\.json: there is no phase 2"):
        step(file, experiment(ramp=RAMP), tmp_path, now=0.0)


def test_the_guardrail_of_these_tests_is_what_the_experiment_declares() -> None:
    assert BEFORE["guardrails"] == [{"metric": "failed", "margin": 0.05}]
