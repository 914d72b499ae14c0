"""Goes through the phases of a ramp: on when a phase has shown no harm, back when it has.

`next_state` decides, from a report alone; `step` reads the log and writes the state file, which every server
reloads. Statistics start afresh with each phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sglang_power.errors import ConfigError
from sglang_power.experiments.analysis import wording
from sglang_power.experiments.analysis.report import report
from sglang_power.experiments.analysis.requests import scope_of
from sglang_power.experiments.analysis.results import Effect, Report
from sglang_power.experiments.analysis.verdict import beyond, within
from sglang_power.experiments.model import Experiment
from sglang_power.experiments.state import State, read_state, replace_state, state_path
from sglang_power.experiments.versions import phases_of

HOUR_S = 3600.0


def next_state(report: Report, experiment: Experiment, state: State, now: float) -> State:
    """Where an experiment goes from here; the same state where it stays.

    Rolled back, for good, when a guardrail of any arm is broken (`verdict.beyond`). On to the next phase when
    the hours since the phase's first enrolment and the units whose window has closed are reached, every
    guardrail of arms that have units in it is surely within its margin, and units arrived as assigned.

    Args:
        report: of the state's phase.
        now: seconds since 1970.
    """
    if state.killed or experiment.kill:
        return state
    guardrails = [effect for effect in report.effects if effect.role == "guardrail"]
    if broken := [effect for effect in guardrails if beyond(effect)]:
        return State(phase=state.phase, killed=True, reason=_told(broken), at=now)
    if obstacle(report, experiment, state, now) is not None:
        return state
    reason = f"phase {state.phase} showed no harm in {report.units:,} units"
    return State(phase=state.phase + 1, reason=reason, at=now)


def obstacle(report: Report, experiment: Experiment, state: State, now: float) -> str | None:
    """What keeps an experiment in its phase, in one sentence; None where it may go on."""
    if state.phase + 1 >= len(experiment.ramp):
        return "it is in its last phase"
    if experiment.drain:
        return "it is draining; another phase would end the windows of this one"
    phase = experiment.ramp[state.phase]
    hours = 0.0 if report.began is None else (now - report.began) / HOUR_S
    if hours < phase.min_hours or report.units < phase.min_units:
        waited = f"{hours:.1f} of {phase.min_hours:g} hours, " if phase.min_hours else ""
        return f"{waited}{report.units:,} of {phase.min_units:,} units with a closed window"
    if report.srm.red:
        return "the sample ratio is red; find the cause first"
    guardrails = [effect for effect in report.effects if effect.role == "guardrail"]
    weights = experiment.weights(state.phase)
    present = [effect for effect in guardrails if weights[effect.arm] and weights[effect.control]]
    if unsure := [effect for effect in present if not within(effect)]:
        return f"not surely within its margin: {_told(unsure)}"
    return None


def step(
    file: Path, experiment: Experiment, log: Path, *, now: float, before: Sequence[Experiment] = ()
) -> tuple[State, str]:
    """Look once: decide, and write the state file where something changes and nobody else changed it.

    Args:
        file: of the experiment; its state is beside it.
        log: directory of the servers' JSONL files.
        before: see Scope.

    Returns:
        the state now, and a sentence on it.

    Raises:
        ConfigError: the state file cannot be read, or names a phase that the ramp has not.
        RecordError: the log cannot be read.
        OSError: the state file cannot be written.
    """
    place = state_path(file)
    state = read_state(place)
    check_phase(experiment, state.phase, place)
    found = report(log, scope_of(experiment, state.phase, now, before))
    after = next_state(found, experiment, state, now)
    if after == state:
        return state, _standing(found, experiment, state, now)
    if (current := replace_state(place, state, after)) != after:
        return current, f"left as it is: {place.name} was changed while the log was read"
    if after.killed:
        return after, f"rolled back, nobody is enrolled any more: {after.reason}"
    return after, f"on to phase {after.phase}: {after.reason}"


def check_phase(experiment: Experiment, phase: int, place: Path | str) -> None:
    """Refuse a phase that the ramp has not.

    Args:
        place: where the phase was named.

    Raises:
        ConfigError: there is no such phase.
    """
    phases = phases_of(experiment)
    if not 0 <= phase < phases:
        raise ConfigError(f"{place}: there is no phase {phase}; the experiment's last is {phases - 1}")


def _standing(report: Report, experiment: Experiment, state: State, now: float) -> str:
    if state.killed or experiment.kill:
        return f"killed in phase {state.phase}: {state.reason or 'by its file'}"
    return f"stays in phase {state.phase}: {obstacle(report, experiment, state, now)}"


def _told(effects: Sequence[Effect]) -> str:
    return "; ".join(
        f"{effect.metric} of {effect.arm} against {effect.control}: {wording.difference(effect)}, "
        f"margin {wording.number(effect.threshold)}"
        for effect in effects
    )
