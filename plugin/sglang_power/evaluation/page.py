"""Draws a report as one static HTML page, which opens from disk and asks nobody for anything.

Strings of a report reach the page only through an autoescaping template. A content security policy forbids
all scripts, and allows one style by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from sglang_power.evaluation import wording
from sglang_power.evaluation.results import Report
from sglang_power.visible import spelled

PACKAGE: Final = "sglang_power.evaluation"


def rendered(report: Report, picture: bytes) -> str:
    """Return the page.

    Args:
        report: what it shows.
        picture: a PNG, which goes into the page.
    """
    environment = Environment(
        loader=PackageLoader(PACKAGE, "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    style = resources.files(PACKAGE).joinpath("page", "report.css").read_text(encoding="utf-8")
    return environment.get_template("report.html").render(
        style=style,
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        picture="data:image/png;base64," + base64.b64encode(picture).decode(),
        report=report,
        wording=wording,
        lists=_lists(report),
    )


def _lists(report: Report) -> list[tuple[str, list[str]]]:
    return [
        ("Remarks", [*report.notes, *(line for row in report.rows for line in wording.remarks(row))]),
        ("Paired tests, two-sided", [wording.tested(test) for test in report.tests]),
        ("Controls at equal decoded tokens", wording.controlled(report.controls)),
    ]


def _shown(value: Any) -> Any:
    """What every expression of the template goes through before it is escaped."""
    return "".join(map(spelled, value)) if type(value) is str else value
