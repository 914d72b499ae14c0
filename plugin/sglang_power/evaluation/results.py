"""What a report holds: the form of report.json. Computes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from sglang_power.evaluation.controls import Control, PassAt, Point
from sglang_power.evaluation.statistics import Interval, Paired

DIGITS: Final = 6
"""Of every number in report.json."""

FORBID: Final = ConfigDict(extra="forbid", frozen=True)


class Likelihood(BaseModel):
    """Whether the model's likelier answers are right more often, over the draws of one arm.

    Args:
        arm, answers, problems: whose answers these are, and how many.
        mean_log_p, log_p: correlation with being right, of log p per token and of the whole answer.
        within_problems: of log p per token, among the answers to one problem.
        reading: what follows, in a sentence.
    """

    model_config = FORBID

    arm: str
    answers: int
    problems: int
    mean_log_p: Interval | None
    log_p: Interval | None
    within_problems: Interval | None
    reading: str


class Row(BaseModel):
    """An arm.

    Args:
        name, sampler, params, samples: what was asked for.
        problems, answers: that there are.  missing: answers that there are not.
        without_answer: texts in which no answer was found.
        ungraded: answers that no grader could judge, by reason; they do not count as right.
        accuracy: the share of right answers.
        decoded, returned, depth: tokens and steps, means over answers.
        mean_log_p, confidence: means over answers; confidence is minus the mean entropy.
        lengths: quantiles of the returned tokens.
        finish: how answers ended.
        acceptance: of a chain, steps and accepted ones, stage by stage.
    """

    model_config = FORBID

    name: str
    sampler: str
    params: dict[str, Any]
    samples: int
    swept: tuple[str, float | int | str] | None
    problems: int
    answers: int
    missing: int
    without_answer: int
    ungraded: dict[str, int]
    accuracy: Interval
    decoded: float
    returned: float
    depth: float
    mean_log_p: float | None
    confidence: float | None
    lengths: dict[str, float]
    finish: dict[str, int]
    acceptance: tuple[tuple[int, int], ...]


class Test(BaseModel):
    """An arm against a baseline, on the problems that both answered."""

    model_config = FORBID

    arm: str
    against: str
    result: Paired


class Histogram(BaseModel):
    """Counts of answers by a figure, arm by arm, in the same bins."""

    model_config = FORBID

    edges: tuple[float, ...]
    counts: dict[str, tuple[int, ...]]


class Load(BaseModel):
    """What depends on the machine, on its load and on what its cache held: no two runs agree on it.

    Args:
        seconds: mean, median and 95th percentile of an answer's wait.
        prefilled: tokens an answer, mean.
    """

    model_config = FORBID

    seconds: dict[str, float]
    prefilled: float


class Report(BaseModel):
    """report.json. `likelihood` stands first, since it says whether any sampler by likelihood can help."""

    model_config = FORBID

    likelihood: Likelihood
    task: str
    model: str
    problems: int
    left_out: int
    rows: tuple[Row, ...]
    tests: tuple[Test, ...]
    controls: tuple[Control, ...]
    curve: tuple[Point, ...]
    pass_at: tuple[PassAt, ...]
    mean_log_p: Histogram | None
    confidence: Histogram | None
    load: dict[str, Load]
    concurrency: int
    settings: dict[str, Any]
    versions: dict[str, str]
    hardware: str | None
    command: str
    notes: tuple[str, ...]

    def write(self, path: Path) -> None:
        """Write the file, with its numbers rounded; a reader sees the old file or the new one."""
        beside = path.with_name(path.name + ".new")
        rounded = type(self).model_validate(_rounded(self.model_dump()))
        beside.write_text(rounded.model_dump_json(indent=1) + "\n", encoding="utf-8")
        beside.replace(path)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: part if name == "params" else _rounded(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_rounded(part) for part in value)
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
