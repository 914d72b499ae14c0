"""The committed record of a soak."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from integration_tests.measured import origin
from integration_tests.soak_tests.soaking import Verdict

RESULTS = Path(__file__).parents[1] / "results" / "soak.json"


def write(verdict: Verdict, minutes: float, clients: int) -> None:
    """Write what a soak showed.

    Args:
        verdict: of the server that is not broken.
        minutes: that clients went on asking.
        clients: at once.
    """
    record = {
        **origin(f"SGLANG_POWER_SOAK_MINUTES={minutes:g} make soak"),
        "clients": clients,
        "requests": verdict.counts.total(),
        "outcomes": dict(sorted(verdict.counts.items())),
        "findings": verdict.findings,
        "memory": [asdict(slope) for slope in verdict.slopes],
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
