"""From a log to a report: reads, makes units, asks the statistics, decides. Owns the order, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sglang_power.experiments.analysis.effects import effects_of
from sglang_power.experiments.analysis.requests import EnrolledUnit, Joined, Scope, joined
from sglang_power.experiments.analysis.results import Excluded, Report, Srm
from sglang_power.experiments.analysis.srm import srm
from sglang_power.experiments.analysis.summary import arm_summaries, shadow_summaries, unmatched
from sglang_power.experiments.analysis.units import population
from sglang_power.experiments.analysis.verdict import verdict
from sglang_power.experiments.versions import rules_hash

DAY_S = 86_400.0


def report(log: Path, scope: Scope) -> Report:
    """What a log says of one phase of an experiment.

    Args:
        log: directory of the server's JSONL files.
        scope: which experiment and phase, as of when.

    Raises:
        RecordError: no such directory, or lines of another schema.
    """
    return report_of(joined(log, scope))


def report_of(found: Joined) -> Report:
    """The report of requests that were joined already."""
    people = population(found)
    experiment, observations = found.scope.experiment, people.observations
    effects = tuple(effects_of(observations, experiment))
    ratio = _srm(people.enrolled, observations.weights)
    began = people.enrolled[0].first if people.enrolled else None
    days = 0.0 if began is None or found.until is None else (found.until - began) / DAY_S
    arms = arm_summaries(found, people)
    return Report(
        experiment=experiment.name,
        owner=experiment.owner,
        hypothesis=experiment.hypothesis,
        kind=experiment.kind,
        config=found.scope.config if people.enrolled else None,
        phase=found.scope.phase,
        began=began,
        until=found.until,
        days=days,
        killed=found.history.killed,
        draining=found.history.draining,
        last_window=max((found.closes(unit) for unit in people.kept if not found.is_cut(unit)), default=None),
        other_rules=_other_rules(found, began),
        outcome_window_h=experiment.outcome_window_h,
        completion_grace_s=experiment.completion_grace_s,
        units=len(observations),
        arms=arms,
        srm=ratio,
        effects=effects,
        verdict=verdict(experiment, effects, ratio, len(observations), days),
        metrics={name: metric.meaning for name, metric in experiment.metrics.items()},
        unmatched=unmatched(experiment, arms),
        shadows=shadow_summaries(found),
        excluded=Excluded(**(found.excluded + people.excluded)),
    )


def _other_rules(found: Joined, began: float | None) -> float | None:
    """Until when the phase's data were to be judged otherwise than they are."""
    if began is None or found.until is None:
        return None
    return found.history.other_rules(rules_hash(found.scope.experiment), began, found.until)


def _srm(enrolled: Sequence[EnrolledUnit], weights: Mapping[str, int]) -> Srm:
    """By all units that were enrolled, and by what was known of them before the assignment."""
    slices = {
        "endpoint": [unit.endpoint for unit in enrolled],
        "stream": [str(unit.stream).lower() for unit in enrolled],
        "model": [unit.model for unit in enrolled],
    }
    return srm([unit.arm for unit in enrolled], weights, slices)
