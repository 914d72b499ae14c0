"""Prometheus metrics of experiments, prefix `sglang_power_experiment_`.

Every label has a closed set of values: experiments and arms come from experiment files, never from requests,
the rest from the literals below. As in `server.metrics`, prometheus_client is imported with the first
observation: before SGLang has set its multiprocess directory it would freeze every metric of the process.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from sglang_power.counting import tolerant
from sglang_power.experiments.log import Trouble
from sglang_power.experiments.model import Experiment
from sglang_power.experiments.providers import NoAnswer
from sglang_power.experiments.records import Completion, Enrolment, RequestOutcome, ShadowRun, TokenCounts

AssignmentTrouble = Literal[NoAnswer, "unknown_arm"]
"""Why an assignment failed; each raises an alarm."""

NotEnrolledReason: TypeAlias = Literal[
    AssignmentTrouble,
    "holdout",
    "namespace",
    "no_unit",
    "own_sampler",
    "seed",
    "greedy",
    "unsupported",
    "not_eligible",
    "batch",
    "killed",
    "internal",
]
"""Why a request runs as if there were no experiment."""

FeedbackResult = Literal["accepted", "malformed", "too_large", "unauthorised"]

_ARM = ("experiment", "arm")
_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
_PREFIX = "sglang_power_experiment_"


@dataclass(frozen=True)
class _Metrics:
    enrolments: Any
    not_enrolled: Any
    completions: Any
    seconds: Any
    tokens: Any
    shadows: Any
    enrolling: Any
    phase: Any
    assignment_trouble: Any
    feedback: Any
    reload_problems: Any
    lines_dropped: Any
    log_trouble: Any


@functools.cache
def _metrics() -> _Metrics:
    from prometheus_client import Counter as Total
    from prometheus_client import Gauge, Histogram

    def total(name: str, what: str, *labels: str) -> Total:
        return Total(_PREFIX + name, what, labels)

    def latest(name: str, what: str) -> Gauge:
        return Gauge(_PREFIX + name, what, ("experiment",), multiprocess_mode="mostrecent")

    return _Metrics(
        enrolments=total("enrolments", "Requests that were given an arm.", *_ARM),
        not_enrolled=total("not_enrolled", "Requests that ran without it.", "experiment", "reason"),
        completions=total("completions", "Enrolled requests that ended.", *_ARM, "outcome"),
        seconds=Histogram(_PREFIX + "latency_seconds", "Arrival to end.", _ARM, buckets=_SECONDS),
        tokens=total("tokens", "Tokens of all child requests.", *_ARM, "kind"),
        shadows=total("shadow_runs", "Runs of arms that are not served.", *_ARM, "outcome"),
        enrolling=latest("enrolling", "1 while requests are enrolled, 0 when killed or removed."),
        phase=latest("phase", "Place in the ramp, from 0."),
        assignment_trouble=total("assignment_trouble", "Assignments that failed.", "reason"),
        feedback=total("feedback", "Posts of feedback.", "result"),
        reload_problems=total("reload_problems", "Edits of experiment files that were not taken."),
        lines_dropped=total("log_lines_dropped", "Lines that are not in the log."),
        log_trouble=total("log_trouble", "Failures of the log, by kind.", "trouble"),
    )


class Counters:
    """What happens to experiments, counted.

    An arm that its experiment does not declare is a ValueError: it would be a label from outside.

    Args:
        enabled: whether this server exports metrics; if not, nothing is imported or counted.
    """

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._loaded: set[str] = set()

    @tolerant
    def changed(self, experiment: Experiment, phase: int, enrolling: bool) -> None:
        """An experiment was loaded or killed. Not to be called before the server has started."""
        if self._enabled:
            self._loaded.add(experiment.name)
            _declare(experiment.name, tuple(arm.name for arm in experiment.served))
            _metrics().enrolling.labels(experiment.name).set(enrolling)
            _metrics().phase.labels(experiment.name).set(phase)

    @tolerant
    def removed(self, name: str) -> None:
        """The file of an experiment is gone; a name that was never loaded is no label."""
        if name in self._loaded:
            _metrics().enrolling.labels(name).set(0)

    @tolerant
    def enrolled(self, experiment: Experiment, line: Enrolment) -> None:
        """A request was given an arm."""
        if self._enabled:
            arm = _labels(experiment, line.arm)
            _metrics().enrolments.labels(*arm).inc()

    @tolerant
    def not_enrolled(self, experiment: Experiment, reason: NotEnrolledReason) -> None:
        """A request was not; where the assignment failed, the alarm counts, too."""
        if self._enabled:
            _metrics().not_enrolled.labels(experiment.name, reason).inc()
            if reason in get_args(AssignmentTrouble):
                _metrics().assignment_trouble.labels(reason).inc()

    @tolerant
    def completed(self, experiment: Experiment, line: Completion) -> None:
        """An enrolled request ended."""
        if self._enabled:
            arm = _labels(experiment, line.arm)
            _metrics().completions.labels(*arm, line.outcome).inc()
            _metrics().seconds.labels(*arm).observe(line.e2e_s)
            _count(arm, line.tokens)

    @tolerant
    def shadow_ran(self, experiment: Experiment, line: ShadowRun) -> None:
        """A shadow arm ran."""
        if self._enabled:
            arm = _labels(experiment, line.arm)
            _metrics().shadows.labels(*arm, line.outcome).inc()
            _count(arm, line.tokens)

    @tolerant
    def feedback(self, result: FeedbackResult) -> None:
        """Feedback was posted."""
        if self._enabled:
            _metrics().feedback.labels(result).inc()

    @tolerant
    def reload_problems(self, problems: int) -> None:
        """Edits were not taken; the last good files stay."""
        if self._enabled:
            _metrics().reload_problems.inc(problems)

    @tolerant
    def log_trouble(self, trouble: Trouble, dropped: int) -> None:
        """The log failed: what `LineLog` tells."""
        if self._enabled:
            _metrics().log_trouble.labels(trouble).inc()
            _metrics().lines_dropped.inc(dropped)


def _labels(experiment: Experiment, arm: str) -> tuple[str, str]:
    if arm not in {known.name for known in experiment.arms}:
        raise ValueError(f"{arm!r} is no arm of experiment {experiment.name}")
    _declare(experiment.name, tuple(served.name for served in experiment.served))
    return experiment.name, arm


@functools.cache
def _declare(experiment: str, served: tuple[str, ...]) -> None:
    """Start the counters of an experiment at 0: `increase()` does not see the first count of a new series."""
    metrics = _metrics()
    for arm in served:
        metrics.enrolments.labels(experiment, arm)
        for outcome in get_args(RequestOutcome):
            metrics.completions.labels(experiment, arm, outcome)
    metrics.not_enrolled.labels(experiment, "internal")
    for reason in get_args(AssignmentTrouble):
        metrics.assignment_trouble.labels(reason)
    for trouble in get_args(Trouble):
        metrics.log_trouble.labels(trouble)


def _count(arm: tuple[str, str], tokens: TokenCounts) -> None:
    _metrics().tokens.labels(*arm, "decoded").inc(tokens.decoded)
    _metrics().tokens.labels(*arm, "prefilled").inc(tokens.prefilled)
