"""Logs for tests of the analysis: lines as servers write them, without a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from ab_experiments import PLAIN, THUMBS, document
from pydantic import BaseModel
from sglang_power.experiments.model import Experiment
from sglang_power.experiments.records import (
    Change,
    Completion,
    Enrolment,
    Feedback,
    RequestOutcome,
    ShadowRun,
    TokenCounts,
)

HOUR = 3600.0
CONFIG = "0123456789abcdef"
"""Hash of the experiment's file in all lines, unless said otherwise."""

BEFORE = document(
    name="power-vs-plain",
    arms=[PLAIN, {"name": "power", "sampler": {"preset": "power"}, "weight": 5000}],
    metrics={
        "thumbs": THUMBS,
        "failed": {"source": "outcome", "outcomes": ["error", "deadline", "lost"]},
        "tokens": {"source": "tokens"},
    },
    primary={"metric": "thumbs", "min_effect": 0.02},
    guardrails=[{"metric": "failed", "margin": 0.05}],
    minimum_run={"days": 0.0, "units": 100},
    outcome_window_h=1.0,
)
"""A complete experiment; tests replace parts of it."""


def experiment(**changes: Any) -> Experiment:
    """The experiment with some of its fields replaced."""
    return Experiment.model_validate_json(json.dumps({**BEFORE, **changes}))


class Lines:
    """Builds a log.

    Args:
        name: of the experiment.
        config: hash of its file.
    """

    def __init__(self, name: str = "power-vs-plain", config: str = CONFIG) -> None:
        self.name, self.config = name, config
        self.written: list[BaseModel] = []
        self._count = 0

    def enrol(self, unit: str, arm: str, at: float, *, phase: int = 0, **more: Any) -> str:
        """An enrolled request, which has not ended; its exposure id."""
        self._count += 1
        exposure = more.pop("exposure_id", f"{self.name}-{self._count:08d}")
        values = {"config": self.config, "model": "m", "endpoint": "chat", "stream": False, **more}
        self.written.append(
            Enrolment(
                at=at,
                exposure_id=exposure,
                experiment=self.name,
                phase=phase,
                unit=unit,
                arm=arm,
                plugin="0.1.0",
                sglang="0.5.23",
                **values,
            )
        )
        return str(exposure)

    def complete(
        self,
        exposure: str,
        arm: str,
        at: float,
        *,
        outcome: RequestOutcome = "ok",
        decoded: int = 10,
        prefilled: int = 5,
        e2e_s: float = 1.0,
        **more: Any,
    ) -> None:
        """The end of a request."""
        tokens = TokenCounts(decoded=decoded, prefilled=prefilled)
        self.written.append(
            Completion(
                at=at,
                exposure_id=exposure,
                experiment=self.name,
                arm=arm,
                outcome=outcome,
                tokens=tokens,
                e2e_s=e2e_s,
                **more,
            )
        )

    def request(self, unit: str, arm: str, at: float, *, phase: int = 0, **completion: Any) -> str:
        """An enrolled request that ended a second later."""
        exposure = self.enrol(unit, arm, at, phase=phase)
        self.complete(exposure, arm, at + 1.0, **completion)
        return exposure

    def say(self, exposure: str, value: float, at: float, metric: str = "thumbs") -> None:
        """Feedback."""
        self.written.append(Feedback(at=at, exposure_id=exposure, metric=metric, value=value))

    def kill(self, at: float) -> None:
        """A server hears of the kill switch."""
        self.change(at, "killed")

    def change(self, at: float, why: Literal["loaded", "killed", "draining", "removed"], **more: Any) -> None:
        """A server hears of something."""
        values = {"config": self.config, "phase": 0, **more}
        enrolling = why in ("loaded", "draining")
        self.written.append(Change(at=at, experiment=self.name, enrolling=enrolling, why=why, **values))

    def shadow(self, exposure: str, arm: str, served: str, at: float, same: bool | None) -> None:
        """A shadow arm ran."""
        self.written.append(
            ShadowRun(
                at=at,
                exposure_id=exposure,
                experiment=self.name,
                arm=arm,
                served=served,
                outcome="error" if same is None else "ok",
                tokens=TokenCounts(decoded=7, prefilled=3),
                e2e_s=1.0,
                same_text=same,
            )
        )

    def write(self, directory: Path, file: str = "host-1-0.0.jsonl") -> Path:
        """Append the lines to a file of a log, and forget them."""
        directory.mkdir(exist_ok=True)
        with (directory / file).open("a", encoding="utf-8") as log:
            log.writelines(line.model_dump_json() + "\n" for line in self.written)
        self.written.clear()
        return directory
