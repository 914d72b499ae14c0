"""Draws a report as one static HTML page, which opens from disk and asks nobody for anything.

Strings of a report reach the page only through an autoescaping template, never into pictures, styles or
attributes. A content security policy forbids all scripts, and allows one style by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sglang_power.experiments.analysis import plots, wording
from sglang_power.experiments.analysis.results import Effect, Report

PACKAGE = "sglang_power.experiments.analysis"
FILTERS = ("visible", "number", "signed", "percent", "moment")


def rendered(report: Report) -> str:
    """The page."""
    environment = Environment(
        loader=PackageLoader(PACKAGE, "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters.update({name: getattr(wording, name) for name in FILTERS})
    style = resources.files(PACKAGE).joinpath("page", "report.css").read_text(encoding="utf-8")
    return environment.get_template("report.html").render(
        style=style,
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        report=report,
        wording=wording,
        effects={role: _drawn(report, role) for role in ("primary", "guardrail", "shown")},
        strips=_strips(report),
        excluded=wording.excluded(report),
    )


def _shown(value: Any) -> Any:
    """What every expression of the template goes through before it is escaped."""
    return wording.visible(value) if type(value) is str else value


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
