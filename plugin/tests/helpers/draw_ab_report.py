"""Draws integration_tests/results/ab_report.png: `python plugin/tests/helpers/draw_ab_report.py`.

Needs Chromium. The page of a report on invented traffic: no model was asked. Answers are graded, and power's
are better than those of both controls.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import chromium
from ab_lines import CONFIG, Lines, experiment
from PIL import Image
from sglang_power.experiments.analysis import page
from sglang_power.experiments.analysis.report import report
from sglang_power.experiments.analysis.requests import Scope

PICTURE = Path(__file__).parents[3] / "integration_tests" / "results" / "ab_report.png"
COLOURS = 256
UNITS, DAYS, DAY_S = 6_000, 9.0, 86_400.0
BEGAN = 1_760_000_000.0

DECLARED: dict[str, Any] = {
    "name": "invented-power-vs-plain",
    "hypothesis": "Power sampling gives better answers than plain sampling and best-of-8 at equal cost.",
    "arms": [
        {"name": "plain", "sampler": {"sampler": "none"}, "weight": 3334, "control": "plain"},
        {"name": "best-of-8", "sampler": {"preset": "b"}, "weight": 3333, "control": "compute_matched"},
        {"name": "power", "sampler": {"preset": "p"}, "weight": 3333},
    ],
    "metrics": {
        "grade": {"source": "feedback", "low": 0.0, "high": 1.0, "absent": 0.0},
        "failed": {"source": "outcome", "outcomes": ["error", "deadline", "lost"]},
        "tokens": {"source": "tokens", "gpu_seconds_per_token": {"decoded": 5e-4, "prefilled": 2e-5}},
    },
    "primary": {"metric": "grade", "min_effect": 0.02},
    "guardrails": [{"metric": "failed", "margin": 0.03}],
    "minimum_run": {"days": 7.0, "units": 1_000},
    "outcome_window_h": 24.0,
}
GRADE = {"plain": 0.45, "best-of-8": 0.52, "power": 0.62}
WORK = {"plain": 1.0, "best-of-8": 8.0, "power": 7.4}


def invented(directory: Path) -> Path:
    """The log; fixed seed."""
    chance, log = random.Random(11), Lines(name=DECLARED["name"])
    for number in range(UNITS):
        arm = chance.choice(sorted(GRADE))
        first = BEGAN + number * DAYS * DAY_S / UNITS
        for repeat in range(chance.choice([1, 1, 1, 2, 3, 6])):
            at = first + repeat * 1_800.0
            exposure = log.enrol(f"u{number}", arm, at)
            seconds = WORK[arm] ** 0.8 * chance.lognormvariate(0.0, 0.4)
            failed = chance.random() < 0.006
            tokens = round(200 * WORK[arm] * chance.lognormvariate(0.0, 0.3))
            log.complete(
                exposure,
                arm,
                at + seconds,
                outcome="error" if failed else "ok",
                decoded=tokens,
                prefilled=tokens // 2,
                e2e_s=seconds,
            )
            if chance.random() < 0.8:
                log.say(
                    exposure,
                    round(chance.betavariate(4 * GRADE[arm], 4 - 4 * GRADE[arm]), 1),
                    at + 60.0,
                    "grade",
                )
    return log.write(directory)


def main() -> None:
    """The picture, from the page's top."""
    with tempfile.TemporaryDirectory() as folder, chromium.tab(Path(folder) / "profile") as tab:
        log = invented(Path(folder) / "log")
        found = report(log, Scope(experiment(**DECLARED), CONFIG, 0, BEGAN + DAYS * DAY_S + 3_600.0))
        drawn = Path(folder) / "page.html"
        drawn.write_text(page.rendered(found), encoding="utf-8")
        tab.open(drawn, width=920, height=2_440)
        tab.screenshot(PICTURE)
        Image.open(PICTURE).quantize(COLOURS).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
