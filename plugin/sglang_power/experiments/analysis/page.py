"""Draws a report as one static HTML page; `static_pages` says what keeps it harmless.

Strings of a report reach the page only through its template, never into pictures, styles or attributes.
"""

from __future__ import annotations

import base64

from sglang_power import static_pages
from sglang_power.experiments.analysis import plots, wording
from sglang_power.experiments.analysis.results import Effect, Report

PACKAGE = "sglang_power.experiments.analysis"
FILTERS = ("visible", "number", "signed", "percent", "moment")


def rendered(report: Report) -> str:
    """The page."""
    values = {
        "report": report,
        "wording": wording,
        "effects": {role: _drawn(report, role) for role in ("primary", "guardrail", "shown")},
        "strips": _strips(report),
        "excluded": wording.excluded(report),
    }
    filters = {name: getattr(wording, name) for name in FILTERS}
    return static_pages.rendered(PACKAGE, wording.visible, values, filters)


def _drawn(report: Report, role: str) -> list[tuple[Effect, dict[str, str | None] | None]]:
    """Effects of a role, with the pictures of those that decide, each in two sizes."""
    return [
        (effect, None if role == "shown" else _path(effect))
        for effect in report.effects
        if effect.role == role
    ]


def _path(effect: Effect) -> dict[str, str | None] | None:
    wide = _embedded(plots.path_svg(effect))
    return None if wide is None else {"wide": wide, "narrow": _embedded(plots.path_svg(effect, plots.NARROW))}


def _strips(report: Report) -> list[str | None]:
    """Per arm, its latencies on a scale that all arms share."""
    longest = max((arm.e2e_s["p99"] for arm in report.arms if arm.e2e_s), default=0.0)
    return [_embedded(plots.quantiles_svg(arm.e2e_s, longest)) for arm in report.arms]


def _embedded(svg: bytes | None) -> str | None:
    """Return an SVG as an image's address: there nothing of it can run, and its styles stay its own."""
    return None if svg is None else "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
