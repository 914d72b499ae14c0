"""Draws a report as one static HTML page; `static_pages` says what keeps it harmless."""

from __future__ import annotations

import base64
from typing import Final

from sglang_power import static_pages
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
    values = {
        "picture": "data:image/png;base64," + base64.b64encode(picture).decode(),
        "report": report,
        "wording": wording,
        "lists": _lists(report),
    }
    return static_pages.rendered(PACKAGE, lambda text: "".join(map(spelled, text)), values)


def _lists(report: Report) -> list[tuple[str, list[str]]]:
    return [
        ("Remarks", [*report.notes, *(line for row in report.rows for line in wording.remarks(row))]),
        ("Paired tests, two-sided", [wording.tested(test) for test in report.tests]),
        ("Controls at equal decoded tokens", wording.controlled(report.controls)),
    ]
