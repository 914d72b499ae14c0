"""Publishes a report of `sglang-power eval`: `python -m integration_tests.tasks.publish FOLDER`.

Copies its figures and its picture to integration_tests/results/eval, under the folder's name, and renews what
the guide shows of them.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sglang_power.evaluation import wording
from sglang_power.evaluation.results import Report, Row
from sglang_power.evaluation.session import JSON, PICTURE

ROOT: Final = Path(__file__).parents[2]
RESULTS: Final = ROOT / "integration_tests" / "results" / "eval"
GUIDE: Final = ROOT / "plugin" / "docs" / "evaluation.md"
COLUMNS: Final = (
    *("sampler", "accuracy (95%)", "tokens an answer", "depth", "p against plain", "against greedy"),
    "best choice among plain answers at its tokens",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Publish one folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the --output of the evaluation")
    folder = parser.parse_args(argv).folder
    report = read(folder / JSON)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in (JSON, PICTURE):
        shutil.copy(folder / name, RESULTS / f"{folder.name}{Path(name).suffix}")
    renew(folder.name, report)


def read(path: Path) -> Report:
    """Return the report that a file holds."""
    return Report.model_validate_json(path.read_bytes())


def renew(name: str, report: Report, guide: Path = GUIDE) -> None:
    """Write into the guide what it shows of a report, between the marks of its name."""
    before, rest = guide.read_text().split(f"<!-- eval {name} -->\n")
    after = rest.split(f"<!-- /eval {name} -->")[1]
    shown = "\n".join(section(report))
    guide.write_text(f"{before}<!-- eval {name} -->\n{shown}\n<!-- /eval {name} -->{after}")


def section(report: Report) -> list[str]:
    """Return the lines that the guide shows of a report."""
    versions = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    rows = ["| " + " | ".join(line) + " |" for line in (COLUMNS, ["---"] * len(COLUMNS))]
    rows += ["| " + " | ".join(cells(report, row)) + " |" for row in report.rows]
    return [
        wording.first_line(report),
        "",
        *rows,
        "",
        *passes(report),
        f"{report.hardware}; {versions}; `{report.command}`.",
    ]


def passes(report: Report) -> list[str]:
    """Return pass@k in a table, where there is more than one answer to a problem."""
    ks = sorted({point.k for point in report.pass_at})
    if ks == [1]:
        return []
    found = {(point.arm, point.k): wording.interval(point.value) for point in report.pass_at}
    lines = [["pass@k", *map(str, ks)], ["---"] * (len(ks) + 1)]
    lines += [
        [row.name, *(found.get((row.name, k), "") for k in ks)]
        for row in report.rows
        if (row.name, ks[1]) in found
    ]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]


def cells(report: Report, row: Row) -> list[str]:
    """Return a sampler's row."""
    p = {test.against: test.result.p for test in report.tests if test.arm == row.name}
    controls = [
        (control.accuracy.value, control)
        for control in report.controls
        if control.arm == row.name and control.accuracy is not None
    ]
    best = max(controls, key=lambda pair: pair[0])[1] if controls else None
    told = ""
    if best is not None and best.accuracy is not None:
        rule = "vote" if best.rule == "vote" else "likeliest"
        told = f"{wording.interval(best.accuracy)}, {rule} of {best.samples}"
    return [
        row.name,
        wording.interval(row.accuracy),
        wording.number(row.decoded),
        wording.number(row.depth),
        *(wording.p_value(p[name]) if name in p else "" for name in ("plain", "greedy")),
        told,
    ]


if __name__ == "__main__":
    main()
