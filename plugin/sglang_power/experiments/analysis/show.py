"""Reports and simulations as plain text for a terminal: at most 100 columns, no escape codes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from sglang_power.experiments.analysis import wording
from sglang_power.experiments.analysis.results import ArmSummary, Effect, Report
from sglang_power.experiments.analysis.simulate import Share, SimulationResult

WIDTH = 100
CELL = 24
"""Longest cell of a table; longer names are cut, the lines below have them whole."""


def text(report: Report) -> str:
    """The report, line by line."""
    return "\n".join(line for part in _parts(report) for line in _fitted(part)) + "\n"


def simulation(result: SimulationResult) -> str:
    """What a simulation found, line by line."""
    return "\n".join(line for part in _simulated(result) for line in _fitted(part)) + "\n"


def _simulated(result: SimulationResult) -> Iterator[str]:
    assumed = result.assumptions
    yield (
        f"{result.experiment}: {assumed.runs:,} runs of {assumed.units:,} units without a lift, and as many "
        f"with it; verdicts asked for {len(result.looks)} times"
    )
    yield f"base: {_pairs(assumed.base)}; lift: {_pairs(assumed.lift) or 'none'}"
    yield ""
    yield "Without a lift"
    yield f"  an interval of the primary metric excluded 0: {_share(result.false_positives)}"
    yield f"  ended with ship: {_share(result.false_ships)}"
    yield "With it"
    yield f"  ended with ship (power): {_share(result.shipped)}"
    yield f"  ended with stop: {_share(result.stopped)}"
    yield f"  an interval of the primary metric missed the lift: {_share(result.missed)}"
    if result.median_units is not None and result.median_days is not None:
        yield f"  median run until a verdict: {result.median_units:,.0f} units, {result.median_days:.1f} days"
    if result.mean_estimate is not None and result.bias is not None:
        estimate, bias = wording.signed(result.mean_estimate), wording.signed(result.bias)
        yield f"  mean estimate of the primary metric: {estimate}, which is {bias} beside the lift"


def _pairs(values: Mapping[str, float]) -> str:
    return ", ".join(f"{metric} {value:g}" for metric, value in values.items())


def _share(share: Share) -> str:
    percents = [wording.percent(round(value, 4)) for value in (share.share, share.low, share.high)]
    return "{} of runs (between {} and {})".format(*percents)


def _parts(report: Report) -> Iterator[str]:
    verdict = report.verdict
    yield f"{report.experiment}, phase {report.phase}: {report.hypothesis}"
    yield (
        f"{wording.moment(report.began)} to {wording.moment(report.until)} UTC ({report.days:.1f} days), "
        f"{report.units:,} units analysed; owner: {report.owner}"
    )
    if report.config is None:
        yield wording.NOBODY
    if (standing := wording.standing(report)) is not None:
        yield f"{standing[0].upper()} {standing[1]}"
    for warning in wording.warnings(report):
        yield f"WARNING: {warning}"
    yield ""
    yield f"VERDICT: {verdict.decision}{f' {verdict.arm}' if verdict.arm else ''}"
    yield f"  {verdict.reason}"
    yield ""
    yield from _arms(report)
    yield ""
    yield f"Sample ratio: {'RED' if report.srm.red else 'green'}; {wording.sample_ratio(report)}"
    for name, units in report.srm.units.items():
        yield f"  {name}: {units:,} units enrolled, declared {wording.percent(report.srm.expected[name])}"
    yield ""
    yield "Differences, arm minus control; the intervals hold however often you look, for effects that last"
    for effect in report.effects:
        yield from _effect(report, effect)
    yield ""
    yield "What is measured"
    yield f"  {wording.windows(report)}"
    for name, meaning in report.metrics.items():
        yield f"  {name}: {meaning}"
    if report.shadows:
        yield from ["", "Shadow arms, never served"]
    for shadow in report.shadows:
        yield (
            f"  {shadow.name}: {shadow.runs:,} runs, {shadow.ok:,} ok, {shadow.same_text:,} with the served "
            f"text, {wording.number(shadow.tokens_per_run)} tokens per run"
        )
    if left_out := wording.excluded(report):
        yield from ["", "Not in the statistics"]
    for count, told in left_out:
        yield f"  {count:,} {told}"


def _arms(report: Report) -> Iterator[str]:
    yield from _table(
        ["arm", "control", "weight", "units", "requests", "answered", "p50 s", "p95 s", "p99 s"],
        [_seen(arm) for arm in report.arms],
    )
    yield ""
    yield "Cost per completed request; times and cost decide nothing here"
    yield from _table(
        ["arm", "decoded tokens", "prefilled tokens", "GPU seconds (estimated)"],
        [
            [
                arm.name,
                wording.number(arm.tokens_per_request.get("decoded")),
                wording.number(arm.tokens_per_request.get("prefilled")),
                wording.number(arm.gpu_seconds_per_request),
            ]
            for arm in report.arms
        ],
    )
    for arm in report.arms:
        ended = ", ".join(f"{count:,} {outcome}" for outcome, count in arm.outcomes.items())
        yield f"  {arm.name}: {ended or 'no requests'}"


def _seen(arm: ArmSummary) -> list[str]:
    return [
        arm.name,
        arm.control or "",
        wording.percent(arm.weight / 10_000),
        f"{arm.units:,}",
        f"{arm.requests:,}",
        wording.answered(arm),
        *(wording.number(arm.e2e_s.get(name)) for name in ("p50", "p95", "p99")),
    ]


def _effect(report: Report, effect: Effect) -> Iterator[str]:
    yield f"  {effect.role} {effect.metric}: {effect.arm} against {effect.control} ({wording.aim(effect)})"
    yield f"    {wording.judged(effect)}: {wording.difference(effect)} ({wording.basis(effect)})"
    yield f"    means so far: {wording.rates(report, effect)}"
    if effect.carry_over_p is not None:
        yield f"    carry-over from the window before: p = {wording.number(effect.carry_over_p)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Names to the left, numbers to the right."""
    shown = [[wording.visible(cell) for cell in row] for row in [head, *rows]]
    cut = [[cell if len(cell) <= CELL else f"{cell[: CELL - 3]}..." for cell in row] for row in shown]
    widths = [max(map(len, column)) for column in zip(*cut, strict=True)]
    for first, *others in cut:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()


def _fitted(line: str) -> list[str]:
    """One line as lines that fit, the later ones further in."""
    shown = wording.visible(line)
    indent = shown[: len(shown) - len(shown.lstrip())] + "  "
    return textwrap.wrap(shown, WIDTH, subsequent_indent=indent, drop_whitespace=True) or [""]
