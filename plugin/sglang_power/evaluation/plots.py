"""Pictures of a report, as PNG. Of a report's strings the names of arms are drawn, as plain text."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sglang_power.evaluation.results import Histogram, Report, Row

MARKERS: Final = "osD^vP*X<>"
COLOURS: Final = 10
PANEL: Final = (5.2, 3.8)
COLUMNS: Final = 2

Panel = Callable[[Axes, Report, dict[str, dict[str, Any]]], None]


def drawn(report: Report) -> bytes:
    """Return one picture with all panels that the report has data for."""
    panels = _panels(report)
    height = -(-len(panels) // COLUMNS)
    size = (PANEL[0] * COLUMNS + 2.0, PANEL[1] * height)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(height, COLUMNS, squeeze=False).ravel().tolist()
    styles = _styles(report)
    for axes, panel in zip(places, panels, strict=False):
        panel(axes, report, styles)
        axes.grid(alpha=0.3)
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    shown: dict[str, Any] = {}
    for axes in places:
        shown |= {
            label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True) if label
        }
    figure.legend(shown.values(), shown.keys(), fontsize=8, loc="outside right upper")
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=100, metadata={"Software": None})
    return sink.getvalue()


def _panels(report: Report) -> list[Panel]:
    found: list[Panel] = [_frontier]
    found += [_pass_at] if any(point.k > 1 for point in report.pass_at) else []
    found += [_mean_log_p] if report.mean_log_p is not None else []
    found += [_confidence] if report.confidence is not None else []
    found += [_acceptance] if any(row.acceptance for row in report.rows) else []
    swept = dict.fromkeys((row.sampler, row.swept[0]) for row in report.rows if row.swept is not None)
    found += [_sweep(sampler, parameter) for sampler, parameter in swept]
    return [*found, _lengths]


def _styles(report: Report) -> dict[str, dict[str, Any]]:
    """A colour and a marker per arm, the same in every panel."""
    return {
        row.name: {"color": f"C{i % COLOURS}", "marker": MARKERS[i % len(MARKERS)]}
        for i, row in enumerate(report.rows)
    }


def plain_text(name: str) -> str:
    """Return a name in which matplotlib sees no formula."""
    return name.replace("$", r"\$")


def _frontier(axes: Axes, report: Report, styles: dict[str, dict[str, Any]]) -> None:
    """Accuracy against tokens: every arm, and choices among plain answers."""
    for row in report.rows:
        found = row.accuracy
        low, high = (found.value if bound is None else bound for bound in (found.low, found.high))
        axes.errorbar(
            row.decoded,
            found.value,
            yerr=[[max(0.0, found.value - low)], [max(0.0, high - found.value)]],
            linestyle="none",
            capsize=3,
            label=plain_text(row.name),
            **styles[row.name],
        )
    front = frontier(report.rows)
    axes.plot(
        [row.decoded for row in front],
        [row.accuracy.value for row in front],
        color="0.75",
        linewidth=4.0,
        zorder=0,
        label="no sampler is better and cheaper",
    )
    for rule, line in (("vote", "--"), ("best_of", ":")):
        points = [point for point in report.curve if point.rule == rule]
        if points:
            axes.plot(
                [point.decoded for point in points],
                [point.accuracy.value for point in points],
                line,
                color="0.5",
                marker=".",
                label=f"{rule} of plain answers",
            )
    axes.set(xscale="log", ylim=(-0.02, 1.02), xlabel="decoded tokens an answer", ylabel="accuracy, 95%")


def frontier(rows: Sequence[Row]) -> list[Row]:
    """Return the arms that are better than every cheaper one, from the cheapest (the Pareto front)."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.decoded, -row.accuracy.value)):
        if not front or row.accuracy.value > front[-1].accuracy.value:
            front.append(row)
    return front


def _pass_at(axes: Axes, report: Report, styles: dict[str, dict[str, Any]]) -> None:
    for row in report.rows:
        points = [point for point in report.pass_at if point.arm == row.name]
        if len(points) > 1:
            ks = [point.k for point in points]
            axes.plot(
                ks, [point.value.value for point in points], label=plain_text(row.name), **styles[row.name]
            )
    axes.set(xscale="log", ylim=(-0.02, 1.02), xlabel="k", ylabel="pass@k, unbiased")
    axes.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])


def _mean_log_p(axes: Axes, report: Report, styles: dict[str, dict[str, Any]]) -> None:
    _stairs(axes, report.mean_log_p, styles, "mean log p of an answer, nats a token")


def _confidence(axes: Axes, report: Report, styles: dict[str, dict[str, Any]]) -> None:
    _stairs(axes, report.confidence, styles, "confidence: minus mean entropy, nats (upper bound)")


def _stairs(axes: Axes, found: Histogram | None, styles: dict[str, dict[str, Any]], label: str) -> None:
    assert found is not None, "the panel is there for it"
    for name, counts in found.counts.items():
        total = sum(counts)
        axes.stairs([count / total for count in counts], found.edges, color=styles[name]["color"])
    axes.set(xlabel=label, ylabel="share of answers")


def _acceptance(axes: Axes, report: Report, styles: dict[str, dict[str, Any]]) -> None:
    for row in report.rows:
        stages = [(at, kept / steps) for at, (steps, kept) in enumerate(row.acceptance, start=1) if steps]
        if stages:
            numbers, rates = zip(*stages, strict=True)
            axes.plot(numbers, rates, label=plain_text(row.name), **styles[row.name])
    axes.set(ylim=(0.0, 1.02), xlabel="stage (blocks of the answer)", ylabel="accepted steps, share")


def _sweep(sampler: str, parameter: str) -> Panel:
    def panel(axes: Axes, report: Report, _: dict[str, dict[str, Any]]) -> None:
        rows = [row for row in report.rows if row.swept is not None and row.swept[0] == parameter]
        points = [(row.swept[1], row) for row in rows if row.sampler == sampler and row.swept is not None]
        at = _places([value for value, _ in points])
        bounds = [(row.accuracy.low, row.accuracy.high) for _, row in points]
        values = [row.accuracy.value for _, row in points]
        errors = [
            [
                max(0.0, value - (value if low is None else low))
                for value, (low, _) in zip(values, bounds, strict=True)
            ],
            [
                max(0.0, (value if high is None else high) - value)
                for value, (_, high) in zip(values, bounds, strict=True)
            ],
        ]
        axes.errorbar(at, values, yerr=errors, color="C0", marker="o", capsize=3)
        axes.set(ylim=(-0.02, 1.02), xlabel=f"{parameter} of {sampler}", ylabel="accuracy, 95%")
        axes.set_xticks(at, [str(value) for value, _ in points])

    return panel


def _places(values: Sequence[float | int | str]) -> list[float]:
    """Where the values of a parameter stand: as numbers where all are, else one beside the other."""
    numbers = [float(value) for value in values if isinstance(value, float | int)]
    return numbers if len(numbers) == len(values) else [float(at) for at in range(len(values))]


def _lengths(axes: Axes, report: Report, styles: dict[str, dict[str, Any]]) -> None:
    rows: list[Row] = list(reversed(report.rows))
    for at, row in enumerate(rows):
        told = row.lengths
        style = styles[row.name]
        axes.plot([told["p5"], told["p95"]], [at, at], color=style["color"])
        axes.plot([told["p50"]], [at], **style)
    axes.set_yticks(range(len(rows)), [plain_text(row.name) for row in rows], fontsize=8)
    axes.set(xlabel="tokens of an answer: median, 5% to 95%")
