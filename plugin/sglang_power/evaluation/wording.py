"""The words and numbers of a report, for the terminal and for the page. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sglang_power.evaluation.controls import Control
from sglang_power.evaluation.results import Report, Row, Test
from sglang_power.evaluation.statistics import Interval, Paired

COLUMNS: Final = (
    "sampler",
    "accuracy (95%)",
    "tokens / answer",
    "depth",
    "seconds",
    "log p / token",
    "problems",
)


def first_line(report: Report) -> str:
    """Return what is said first: whether likelier answers are right more often."""
    told = report.likelihood
    number = "not known" if told.mean_log_p is None else interval(told.mean_log_p)
    answers = f"{told.answers} answers of {told.arm} to {told.problems} problems"
    return f"Correlation of mean log p with being right: {number} ({answers}): {told.reading}."


def interval(found: Interval) -> str:
    """Return a figure with its bounds: 0.431 (0.312 to 0.538)."""
    if found.low is None or found.high is None:
        return f"{found.value:.3f} (no interval)"
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def number(value: float | None) -> str:
    """Return three digits, without an exponent; nothing of nothing."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.5f}"


def p_value(p: float) -> str:
    """Return a p value: three decimals, or a power of ten."""
    return f"{p:.3f}" if p >= 1e-3 else f"{p:.0e}"


def parameters(row: Row) -> str:
    """Return what was asked for, in words."""
    return (
        ", ".join(f"{name} {value}" for name, value in row.params.items() if name != "sampler") or "defaults"
    )


def cells(report: Report, row: Row) -> list[str]:
    """Return a row of the table under COLUMNS."""
    return [
        row.name,
        interval(row.accuracy),
        number(row.decoded),
        number(row.depth),
        number(report.load[row.name].seconds["mean"]),
        number(row.mean_log_p),
        f"{row.problems} x {row.samples}",
    ]


def remarks(row: Row) -> list[str]:
    """Return what a reader must know of an arm's answers."""
    told = []
    if row.missing:
        told.append(f"{row.name}: {row.missing} answers are missing")
    if row.without_answer:
        told.append(f"{row.name}: no answer was found in {row.without_answer} texts")
    told += [f"{row.name}: {count} could not be graded: {why}" for why, count in row.ungraded.items()]
    if cut := row.finish.get("length"):
        told.append(f"{row.name}: {cut} of {row.answers} answers were cut at the limit of tokens")
    return told


def difference(found: Paired) -> str:
    """Return how two samplers differ."""
    many = f"better on {found.better}, worse on {found.worse} of {found.problems} problems"
    return f"{interval(found.difference)}, p {p_value(found.p)} ({found.test}; {many})"


def tested(test: Test) -> str:
    """Return a paired test, in a line."""
    return f"{test.arm} - {test.against}: {difference(test.result)}"


def controlled(controls: Sequence[Control]) -> list[str]:
    """Return the controls at equal tokens, in a line each; those that are not there in one for each arm."""
    missing = {control.arm: control.samples for control in controls if control.accuracy is None}
    told = [
        f"{arm} against choices among {samples} plain answers: not computed, no problem has so many; "
        f"--plain-samples {samples} draws them"
        for arm, samples in missing.items()
    ]
    return [*(_controlled(control) for control in controls if control.accuracy is not None), *told]


def _controlled(control: Control) -> str:
    assert control.accuracy is not None, "it was computed"
    assert control.against is not None, "so was this"
    rule = "majority vote over" if control.rule == "vote" else "likeliest (mean log p) of"
    what = f"{control.arm} against the {rule} {control.samples} plain answers"
    groups = f"{control.groups} groups on {control.problems} problems"
    best = "" if control.any_right is None else f"; one of them is right in {control.any_right:.3f}"
    return f"{what} ({groups}): control {interval(control.accuracy)}; {difference(control.against)}{best}"


def lines(report: Report) -> list[str]:
    """Return what the terminal shows of a report."""
    wide = [COLUMNS, *(cells(report, row) for row in report.rows)]
    widths = [max(len(line[at]) for line in wide) for at in range(len(COLUMNS))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in wide]
    return [
        first_line(report),
        f"{report.task}, {report.problems} problems, model {report.model}",
        *(line.rstrip() for line in table),
        *_section("Paired, two-sided:", [tested(test) for test in report.tests]),
        *_section("At equal decoded tokens:", controlled(report.controls)),
        *_section("Remarks:", [*report.notes, *(line for row in report.rows for line in remarks(row))]),
    ]


def _section(title: str, told: Sequence[str]) -> list[str]:
    return [title, *(f"  {line}" for line in told)] if told else []
