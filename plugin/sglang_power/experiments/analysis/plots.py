"""Pictures of a report, as SVG. No string of a report is drawn: names stand beside the pictures, as text."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from sglang_power.experiments.analysis.results import Effect
from sglang_power.types import FloatArray

INK, BAND, LINE, GOAL = "#3b4252", "#c7d7ee", "#1f4e9c", "#8a5a00"
SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "sglang-power",  # The same report gives the same bytes.
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


WIDE, NARROW = (8.2, 2.6), (4.4, 2.6)
"""Sizes of a picture, in inches: for screens, and for those of telephones."""


def path_svg(effect: Effect, size: tuple[float, float] = WIDE) -> bytes | None:
    """How an interval narrowed while units came in; None where there was never one.

    The dashed line is no difference, the dotted one the threshold: what the primary metric must gain to be
    worth shipping, or what a guardrail may lose.
    """
    units = np.array([point.units for point in effect.path], dtype=np.float64)
    low, high, estimate = (
        np.array([getattr(point, name) for point in effect.path], dtype=np.float64)
        for name in ("low", "high", "estimate")
    )
    if not np.isfinite(low).any():
        return None
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.fill_between(units, low, high, color=BAND, label="where the difference is")
        axes.plot(units, estimate, color=LINE, linewidth=1.4, label="best guess")
        axes.axhline(0.0, color=INK, linestyle="--", linewidth=0.8)
        if (goal := _goal(effect)) is not None:
            axes.axhline(goal, color=GOAL, linestyle=":", linewidth=1.2, label="threshold")
        axes.set_ylim(*_limits(units, np.array([low, high, estimate]), goal))
        rows = "windows" if effect.interval.method == "randomisation" else "units"
        axes.set_xlabel(f"{rows} analysed, both arms together")
        axes.set_ylabel("arm minus control")
        small = 8 if size == WIDE else 7
        axes.legend(loc="upper right", frameon=False, ncols=3, fontsize=small, columnspacing=1.0)
        axes.spines[["top", "right"]].set_visible(False)
        return _svg(figure)


def _goal(effect: Effect) -> float | None:
    """The threshold as a difference: a gain for the primary metric, a loss for guardrails."""
    if effect.threshold is None:
        return None
    gained = effect.threshold if effect.role == "primary" else -effect.threshold
    return gained if effect.direction == "higher" else -gained


def _limits(units: FloatArray, drawn: FloatArray, goal: float | None) -> tuple[float, float]:
    """Shows the last three quarters; the first units' intervals would make all others a line.

    Args:
        drawn: [low, high and estimate, units]; bounds are NaN where there is no interval.
    """
    known = units[np.isfinite(drawn[0])]
    late = drawn[:, units >= min(units[-1] / 4, known[-1])]
    least = min(float(np.nanmin(late)), 0.0, goal or 0.0)
    most = max(float(np.nanmax(late)), 0.0, goal or 0.0)
    room = 0.08 * (most - least or 1.0)
    return least - room, most + 3 * room  # The legend stands above.


def quantiles_svg(seconds: Mapping[str, float], longest: float) -> bytes | None:
    """A strip from an arm's p50 to its p99 with a mark at p95; None without answers.

    Args:
        seconds: "p50", "p95", "p99".
        longest: where the strip ends, the same for all arms.
    """
    if not seconds:
        return None
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(2.4, 0.26))
        axes: Axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.hlines(0.0, seconds["p50"], seconds["p99"], color=BAND, linewidth=7)
        axes.plot([seconds["p50"]], [0.0], "o", color=LINE, markersize=6)
        axes.plot([seconds["p95"]], [0.0], "|", color=LINE, markersize=11, markeredgewidth=2)
        axes.set_xlim(-0.02 * longest, 1.04 * longest)
        axes.set_axis_off()
        return _svg(figure)


def _svg(figure: Figure) -> bytes:
    FigureCanvasSVG(figure)
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()
