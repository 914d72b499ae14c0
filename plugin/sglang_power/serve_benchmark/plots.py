"""Pictures of the results: what an answer costs against how often it is right, and throughput by load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sglang_power.serve_benchmark.grid import LADDER, PLAIN
from sglang_power.serve_benchmark.record import Record, Row

NAMES: Final = ("serve_latency.png", "serve_load.png")
MARKERS: Final = "osD^vP*X"
COLOURS: Final = 10


def draw(record: Record, folder: Path) -> list[Path]:
    """Draw both pictures, a panel per workload, and return their paths."""
    workloads = sorted({row.workload for row in record.rows})
    paths = [folder / name for name in NAMES]
    for path, panel in zip(paths, (_latency, _load), strict=True):
        figure = Figure(figsize=(5.6 * max(len(workloads), 1) + 2.4, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        styles = _styles(record.rows)
        panels = figure.subplots(1, max(len(workloads), 1), squeeze=False)[0]
        for axes, workload in zip(panels, workloads, strict=False):
            panel(axes, [row for row in record.rows if row.workload == workload], styles)
            axes.set_title(f"{workload}")
            axes.grid(alpha=0.3)
        shown = {
            label: handle
            for axes in panels
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(shown.values(), shown.keys(), fontsize=8, loc="outside right upper")
        figure.savefig(path, dpi=120, metadata={"Software": None})
    return paths


def _styles(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """A colour and a marker per row of the grid, the same in every panel."""
    names = dict.fromkeys(row.sampler for row in rows)
    return {
        name: {"color": f"C{i % COLOURS}", "marker": MARKERS[i % len(MARKERS)]}
        for i, name in enumerate(names)
    }


def _latency(axes: Axes, rows: Sequence[Row], styles: dict[str, dict[str, Any]]) -> None:
    """Accuracy against latency by that of a plain answer, under the least load."""
    fewest = min(
        (row.concurrency for row in rows if row.sampler == PLAIN and row.concurrency != "open"), default=1
    )
    for row in rows:
        if row.concurrency != fewest or row.wall_vs_plain is None or row.accuracy is None or row.ci95 is None:
            continue
        low, high = row.ci95
        axes.errorbar(
            row.wall_vs_plain,
            row.accuracy,
            yerr=[[row.accuracy - low], [high - row.accuracy]],
            linestyle="none",
            capsize=3,
            label=row.sampler,
            **styles[row.sampler],
        )
    axes.set(xscale="log", ylim=(0.0, 1.02), ylabel="accuracy, 95% interval")
    axes.set_xlabel(f"median latency / that of a plain answer, clients: {fewest}")


def _load(axes: Axes, rows: Sequence[Row], styles: dict[str, dict[str, Any]]) -> None:
    """Answers per minute against clients at once."""
    for name in dict.fromkeys(row.sampler for row in rows):
        points = sorted(
            (row.concurrency, row.answers_per_minute)
            for row in rows
            if row.sampler == name and row.concurrency != "open"
        )
        width = 1.6 if name in LADDER else 0.8
        clients, answers = zip(*points, strict=True) if points else ((), ())
        axes.plot(clients, answers, linewidth=width, label=name, **styles[name])
    axes.set(xscale="log", yscale="log", xlabel="clients at once", ylabel="answers per minute")
