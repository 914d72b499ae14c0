"""Joins the lines of a log: enrolled requests, with how they ended and what was said about them.

Owns which lines count and which are excluded, and why; `units` makes one row per unit of what is left. The
log is read three times, changes first, then enrolments, since files are in no common order of time: in memory
are only the requests of one phase of one experiment, and the names of all others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sglang_power.experiments.analysis.history import History, history
from sglang_power.experiments.analysis.reading import UnreadableLines, changes, lines
from sglang_power.experiments.metrics import FeedbackMetric
from sglang_power.experiments.model import Experiment
from sglang_power.experiments.records import (
    Completion,
    Enrolment,
    Feedback,
    Line,
    RequestOutcome,
    ShadowRun,
)
from sglang_power.experiments.versions import Versions, config_hash


@dataclass(frozen=True)
class Scope:
    """What is asked of a log.

    Args:
        config: version of the phase's lines; those of others are excluded, as far as `Versions` tells them
            from this one.
        phase: of the ramp.
        now: later lines are ignored, as if they were not written yet. Seconds since 1970.
        before: earlier contents of the file, whose legacy hashes count where they assign alike.
    """

    experiment: Experiment
    config: str
    phase: int
    now: float
    before: Sequence[Experiment] = ()

    @property
    def window_s(self) -> float:
        """For which outcomes count, from a unit's first enrolment."""
        return self.experiment.outcome_window_h * 3600.0


def scope_of(experiment: Experiment, phase: int, now: float, before: Sequence[Experiment] = ()) -> Scope:
    """Return the scope of a file as it is now; see Scope."""
    return Scope(experiment, config_hash(experiment, phase), phase, now, before)


@dataclass(slots=True)
class EnrolledUnit:
    """Who was randomised: a user, a session, or a window of a switchback.

    Args:
        arm: of its first enrolment in the phase, whatever came later (intention to treat).
        first: when that was.
        endpoint, stream, model: of that request, known before the assignment.
    """

    name: str
    arm: str
    first: float
    endpoint: str
    stream: bool
    model: str


@dataclass(slots=True)
class Request:
    """One enrolled request.

    Args:
        outcome: None where no completion was written in time.
        decoded, prefilled: tokens; 0 without a completion.
        feedback: metric -> (when, value), the last value within the window.
    """

    unit: EnrolledUnit
    at: float
    outcome: RequestOutcome | None = None
    decoded: int = 0
    prefilled: int = 0
    e2e_s: float | None = None
    ttft_s: float | None = None
    feedback: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass
class ShadowTally:
    """What is counted of one shadow arm."""

    runs: int = 0
    ok: int = 0
    same_text: int = 0
    tokens: int = 0


@dataclass
class Joined:
    """What the log says of one phase.

    Args:
        units: name -> unit, everybody who was enrolled.
        requests: exposure -> request within its unit's window; None for those known but not counted.
        earlier: unit -> phase -> arm, before this phase.
        testers: units that chose their arm at least once; none of their requests counts.
        accepted: enrolled requests of the version, in all phases.
        others: other versions -> their enrolled requests.
        shadows: arm -> tally.
        excluded: reason -> how many, as in `results.Excluded`.
        until: last line that counts.
    """

    scope: Scope
    versions: Versions
    history: History
    units: dict[str, EnrolledUnit] = field(default_factory=dict)
    requests: dict[str, Request | None] = field(default_factory=dict)
    earlier: dict[str, dict[int, str]] = field(default_factory=dict)
    testers: set[str] = field(default_factory=set)
    accepted: int = 0
    others: Counter[str] = field(default_factory=Counter)
    shadows: dict[str, ShadowTally] = field(default_factory=dict)
    excluded: Counter[str] = field(default_factory=Counter)
    unreadable: UnreadableLines = field(default_factory=UnreadableLines)
    until: float | None = None

    def closes(self, unit: EnrolledUnit) -> float:
        """When the value of a unit is final: its outcome window and the grace of its requests are over."""
        return unit.first + self.scope.window_s + self.scope.experiment.completion_grace_s

    def is_over(self, unit: EnrolledUnit) -> bool:
        """Whether nothing that comes can change a unit's value."""
        return self.closes(unit) <= self.scope.now

    def is_cut(self, unit: EnrolledUnit) -> bool:
        """Whether a kill kept requests of a unit from being enrolled."""
        last, switchback = unit.first + self.scope.window_s, self.scope.experiment.switchback
        if switchback is not None:
            last = min(last, (int(unit.name) + 1) * switchback.window_s)
        return any(kill.meets(unit.first, last) for kill in self.history.kills)

    def is_closed(self, unit: EnrolledUnit) -> bool:
        """Whether a unit is analysed: its window was open to its end, and is over."""
        return self.is_over(unit) and not self.is_cut(unit)

    def accepts(self, line: Enrolment) -> bool:
        """Whether an enrolment is of the version that is asked for."""
        return line.config == self.scope.config or self.versions.accepts(line.config, line.phase)

    def counted(self) -> list[Request]:
        """The requests that count."""
        return [request for request in self.requests.values() if request is not None]


def joined(log: Path, scope: Scope) -> Joined:
    """The requests of a phase.

    Requests and feedback count where they came before the unit's window closed, completions until the grace
    after it is over, so that nothing that happens later changes the value of a unit that has entered the
    analysis. Only `ingest` can: its outcomes are as old as the table says. Of several values of a metric for
    one request the last counts, of equally old ones the one that is read last.

    Args:
        log: directory of the JSONL files.

    Raises:
        RecordError: no such directory, or lines of another schema.
    """
    versions = Versions(scope.experiment, scope.before)
    told = list(changes(log, scope.experiment.name, scope.now))
    for change in told:
        versions.learn(change)
    result = Joined(scope, versions, history(told))
    for line in lines(log, result.unreadable):
        if line.at <= scope.now:
            _enrol(result, line)
    _settle(result)
    for line in lines(log, UnreadableLines()):  # Counted in the first pass.
        if line.at <= scope.now:
            _attach(result, line)
    result.excluded["other_configuration"] = result.others.total()
    result.excluded["torn_lines"] = result.unreadable.torn
    result.excluded["bad_lines"] = result.unreadable.bad
    return result


def _enrol(result: Joined, line: Line) -> None:
    if not isinstance(line, Enrolment):
        return
    if line.exposure_id in result.requests:
        result.excluded["duplicate_lines"] += line.experiment == result.scope.experiment.name
    else:
        result.requests[line.exposure_id] = _request(result, line)


def _request(result: Joined, line: Enrolment) -> Request | None:
    """None where the request is known, but does not count in this phase."""
    scope = result.scope
    if line.experiment != scope.experiment.name:
        return None
    if not result.accepts(line):
        result.others[line.config] += 1
        return None
    result.accepted += 1
    if line.override:
        result.excluded["overrides"] += 1
        result.testers.add(line.unit)
    elif line.washout:
        result.excluded["washout"] += 1
    elif line.phase < scope.phase:
        result.earlier.setdefault(line.unit, {})[line.phase] = line.arm
    elif line.phase == scope.phase:
        return Request(_unit(result, line), line.at)
    return None


def _unit(result: Joined, line: Enrolment) -> EnrolledUnit:
    """The unit of a request, which may turn out to be its first."""
    unit = result.units.get(line.unit)
    if unit is None:
        unit = EnrolledUnit(line.unit, line.arm, line.at, line.endpoint, line.stream, line.model)
        result.units[line.unit] = unit
    elif line.at < unit.first:
        unit.arm, unit.first = line.arm, line.at
        unit.endpoint, unit.stream, unit.model = line.endpoint, line.stream, line.model
    return unit


def _settle(result: Joined) -> None:
    """Drop what only now is known not to count: of units that are not admitted, in a kill, after a window."""
    refused = {name: why for name, unit in result.units.items() if (why := _refused(result, unit))}
    for exposure, request in result.requests.items():
        if request is None:
            continue
        why = refused.get(request.unit.name)
        if why is None and result.history.was_killed(request.at):
            why = "after_kill"
        if why is not None:
            result.excluded[why] += 1
            result.requests[exposure] = None
        elif not _in_time(result, request.at, request.unit.first + result.scope.window_s):
            result.requests[exposure] = None
    result.units = {name: unit for name, unit in result.units.items() if name not in refused}


def _refused(result: Joined, unit: EnrolledUnit) -> str | None:
    """Why a unit is not admitted to the analysis, whatever its requests were."""
    if unit.name in result.testers:
        return "overrides"
    if result.history.was_killed(unit.first):
        return "after_kill"
    draining = result.history.draining
    return "after_drain" if draining is not None and unit.first > draining else None


def _in_time(result: Joined, at: float, limit: float) -> bool:
    """Whether something came in time; what did not is counted as excluded."""
    if at > limit:
        result.excluded["late_outcomes"] += 1
        return False
    result.until = at if result.until is None else max(result.until, at)
    return True


def _attach(result: Joined, line: Line) -> None:
    if isinstance(line, Completion) and line.experiment == result.scope.experiment.name:
        _complete(result, line)
    elif isinstance(line, Feedback):
        _comment(result, line)
    elif isinstance(line, ShadowRun) and result.requests.get(line.exposure_id) is not None:
        tally = result.shadows.setdefault(line.arm, ShadowTally())
        tally.runs += 1
        tally.ok += line.outcome == "ok"
        tally.same_text += line.same_text is True
        tally.tokens += line.tokens.decoded + line.tokens.prefilled


def _complete(result: Joined, line: Completion) -> None:
    if line.exposure_id not in result.requests:
        result.excluded["unmatched_completions"] += 1
        return
    request = result.requests[line.exposure_id]
    if request is None or not _in_time(result, line.at, result.closes(request.unit)):
        return
    if request.outcome is not None:
        result.excluded["duplicate_lines"] += 1
        return
    request.outcome = line.outcome
    request.decoded, request.prefilled = line.tokens.decoded, line.tokens.prefilled
    request.e2e_s, request.ttft_s = line.e2e_s, line.ttft_s


def _comment(result: Joined, line: Feedback) -> None:
    if line.exposure_id not in result.requests:
        result.excluded["unmatched_feedback"] += 1
        return
    request = result.requests[line.exposure_id]
    if request is None:
        return
    metric = result.scope.experiment.metrics.get(line.metric)
    if not isinstance(metric, FeedbackMetric):
        result.excluded["unknown_metric"] += 1
    elif not _allowed(metric, line.value):
        result.excluded["out_of_range"] += 1
    elif _in_time(result, line.at, request.unit.first + result.scope.window_s):
        known = request.feedback.get(line.metric)
        result.excluded["duplicate_feedback"] += known is not None
        if known is None or line.at >= known[0]:
            request.feedback[line.metric] = (line.at, line.value)


def _allowed(metric: FeedbackMetric, value: float) -> bool:
    return metric.low is None or metric.high is None or metric.low <= value <= metric.high
