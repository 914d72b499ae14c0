"""Puts the answers of a run together. Nothing depends on the order in which the answers came."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np

from sglang_power.errors import ConfigError
from sglang_power.evaluation.arms import BASELINES
from sglang_power.evaluation.controls import controls, curve, passes
from sglang_power.evaluation.records import Kept, Run
from sglang_power.evaluation.results import Histogram, Likelihood, Load, Report, Row, Test
from sglang_power.evaluation.statistics import Interval, correlation, paired, share, within
from sglang_power.evaluation.table import Answers, Table

BINS: Final = 30
Figure: TypeAlias = Callable[[Kept], float | None]


def report(table: Table, missing: Sequence[str] = ()) -> Report:
    """Return what a run came to.

    Args:
        table: its answers.
        missing: what is to be said of answers that there are not.

    Raises:
        ConfigError: there are no answers.
    """
    run = table.run
    if not table.arms:
        raise ConfigError("there are no answers to report on" + "".join(f"\n{line}" for line in missing))
    return Report(
        likelihood=likelihood(table.of("plain") or next(iter(table.arms.values()))),
        task=run.task,
        model=run.model,
        problems=len(run.items),
        left_out=run.left_out,
        rows=tuple(row(answers, len(run.items)) for answers in table.arms.values()),
        tests=tuple(tests(table)),
        controls=tuple(controls(table)),
        curve=tuple(curve(table)),
        pass_at=tuple(passes(table)),
        mean_log_p=histogram(table, lambda answer: answer.mean_log_p),
        confidence=histogram(table, confidence_of),
        load={name: load(answers) for name, answers in table.arms.items()},
        concurrency=run.concurrency,
        settings=_settings(run),
        versions=run.versions,
        hardware=run.hardware,
        command=run.command,
        notes=(*run.notes, *missing),
    )


def _settings(run: Run) -> dict[str, Any]:
    names = ("api", "max_tokens", "stop", "seed", "shots", "has_plugin", "alternatives")
    return {name: getattr(run, name) for name in names}


def confidence_of(answer: Kept) -> float | None:
    """Return minus the mean entropy of an answer's rows, nats."""
    return None if answer.entropy is None else -answer.entropy


def _right(answer: Kept) -> float:
    return float(answer.is_right)


def likelihood(answers: Answers) -> Likelihood:
    """Return whether likelier answers are right more often."""
    mean, total, right = answers.known(lambda one: one.mean_log_p, lambda one: one.log_p, _right)
    found = correlation(mean, right)
    return Likelihood(
        arm=answers.arm.name,
        answers=sum(map(len, mean)),
        problems=len(mean),
        mean_log_p=found,
        log_p=correlation(total, right),
        within_problems=within(mean, right),
        reading=_reading(found, right),
    )


def _reading(found: Interval | None, right: Sequence[Sequence[float]]) -> str:
    if not right:
        return "log p of these answers is not known"
    if found is None:
        rights = sum(map(sum, right))
        alike = "all right" if rights else "all wrong"
        varies = 0 < rights < sum(map(len, right))
        return (
            "these answers do not differ in log p" if varies else f"these answers are {alike}: nothing to see"
        )
    if found.low is None or found.high is None:
        return "too few answers for an interval"
    if found.low > 0.0:
        return "likelier answers are right more often: samplers by likelihood can help here"
    if found.high < 0.0:
        return "likelier answers are right LESS often: samplers by likelihood can only do harm here"
    return "the interval holds 0: nothing says that a sampler by likelihood can help here"


def row(answers: Answers, problems: int) -> Row:
    """Return the figures of an arm, of so many problems of the task."""
    arm, every = answers.arm, answers.all
    lengths = np.array([answer.returned for answer in every], dtype=np.float64)
    quantiles = dict(
        zip(("p5", "p50", "p95", "max"), np.quantile(lengths, (0.05, 0.5, 0.95, 1.0)), strict=True)
    )
    return Row(
        name=arm.name,
        sampler=arm.sampler,
        params=arm.params,
        samples=arm.samples,
        swept=arm.swept,
        problems=len(answers.by_item),
        answers=len(every),
        missing=problems * arm.samples - len(every),
        without_answer=sum(answer.value is None and answer.correct is False for answer in every),
        ungraded=dict(Counter(answer.reason for answer in every if answer.correct is None)),
        accuracy=share(answers.groups(_right)),
        decoded=answers.mean(lambda answer: answer.decoded),
        returned=answers.mean(lambda answer: answer.returned),
        depth=answers.mean(lambda answer: answer.depth),
        mean_log_p=_mean(every, lambda answer: answer.mean_log_p),
        confidence=_mean(every, confidence_of),
        lengths={name: float(value) for name, value in quantiles.items()},
        finish=dict(sorted(Counter(str(answer.finish_reason) for answer in every).items())),
        acceptance=_acceptance(every),
    )


def _mean(answers: Sequence[Kept], figure: Figure) -> float | None:
    known = [value for answer in answers if (value := figure(answer)) is not None]
    return math.fsum(known) / len(known) if known else None


def _acceptance(answers: Sequence[Kept]) -> tuple[tuple[int, int], ...]:
    """Steps and accepted ones of every stage, added over answers."""
    longest = max(len(answer.blocks) for answer in answers)
    stages = [[answer.blocks[at] for answer in answers if at < len(answer.blocks)] for at in range(longest)]
    return tuple((sum(steps for steps, _ in stage), sum(kept for _, kept in stage)) for stage in stages)


def tests(table: Table) -> list[Test]:
    """Return every arm against plain, low temperature and greedy."""
    found = []
    for name, answers in table.arms.items():
        for baseline in BASELINES:
            other = table.of(baseline)
            items = [] if other is None or other is answers else table.common(answers, other)
            if other is not None and items:
                groups = [
                    [[float(one.is_right) for one in side.by_item[item]] for item in items]
                    for side in (answers, other)
                ]
                found.append(Test(arm=name, against=other.arm.name, result=paired(*groups)))
    return found


def histogram(table: Table, figure: Figure) -> Histogram | None:
    """Return counts of a figure in bins that all arms share; None where nothing is known of it."""
    values: Mapping[str, list[float]] = {
        name: [value for answer in answers.all if (value := figure(answer)) is not None]
        for name, answers in table.arms.items()
    }
    every = [value for column in values.values() for value in column]
    if not every:
        return None
    edges = np.histogram_bin_edges(every, bins=BINS)
    counts = {
        name: tuple(np.histogram(column, edges)[0].tolist()) for name, column in values.items() if column
    }
    return Histogram(edges=tuple(edges.tolist()), counts=counts)


def load(answers: Answers) -> Load:
    """Return what depends on the machine."""
    seconds = np.array([answer.seconds for answer in answers.all], dtype=np.float64)
    p50, p95 = np.quantile(seconds, (0.5, 0.95)).tolist()
    return Load(
        seconds={"mean": float(seconds.mean()), "p50": p50, "p95": p95},
        prefilled=answers.mean(lambda answer: answer.prefilled),
    )
