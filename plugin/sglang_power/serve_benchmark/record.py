"""serve.json: its form, and which of its rows stand for a cell that is asked for again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from sglang_power.errors import ConfigError

Concurrency: TypeAlias = int | Literal["open"]
"""Clients that wait for their answer before they ask again, or Poisson arrivals."""

DIGITS = 5
"""Of every figure in the file."""


class Effort(BaseModel):
    """How a row was measured.

    Args:
        answers: how many were wanted.
        seconds: after which no further answer is asked for.
        prompts: a hash of the prompts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    answers: int
    seconds: float
    prompts: str


class Row(BaseModel):
    """One cell's figures; tokens are per token that was returned, times in seconds.

    Args:
        sampler: name of the row of the grid; `params` say what was asked for.
        wall_vs_plain: median latency by that of plain answers, asked for right before and after; in an open
            loop by that of plain answers in theirs.
        extend_passes_per_answer, decode_passes_per_answer: forward passes of the server; null where it does
            not export metrics.
        arrivals_per_minute: of an open loop.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    workload: str
    sampler: str
    params: dict[str, Any]
    concurrency: Concurrency
    decoded_per_returned: float
    prefilled_per_returned: float
    depth_per_returned: float
    wall_vs_plain: float | None
    answers_per_minute: float
    p50_s: float
    p95_s: float
    p99_s: float
    accuracy: float | None
    ci95: tuple[float, float] | None
    answers: int
    returned_per_answer: float
    extend_passes_per_answer: float | None
    decode_passes_per_answer: float | None
    arrivals_per_minute: float | None
    effort: Effort

    @property
    def key(self) -> tuple[Any, ...]:
        """Return what there is at most one row of in a file."""
        place = (self.model, self.workload, self.sampler, self.concurrency)
        return (*place, self.params.get("alpha"), self.params.get("max_new_tokens"))

    @property
    def decoded_per_answer(self) -> float:
        """Return the tokens that one answer took."""
        return self.decoded_per_returned * self.returned_per_answer


class Record(BaseModel):
    """The file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hardware: str
    versions: dict[str, str]
    command: str
    rows: tuple[Row, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return what a file holds.

        Raises:
            ConfigError: unreadable, or not such a file.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ConfigError(str(error)) from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, first["loc"]))
            raise ConfigError(f"{path}: {field}: {first['msg']}; write to another folder") from error

    def resumed(self, path: Path) -> Record:
        """Return this record with the rows of an earlier run in a file, where there is one.

        Raises:
            ConfigError: the file is another machine's or other versions'.
        """
        if not path.exists():
            return self
        before = self.read(path)
        if (before.hardware, before.versions) != (self.hardware, self.versions):
            raise ConfigError(
                f"{path} was measured on other hardware or versions ({before.hardware}; {before.versions}): "
                "its rows are not comparable with this run's; start anew with --fresh, or write elsewhere"
            )
        return self.model_copy(update={"rows": before.rows})

    def with_row(self, row: Row) -> Record:
        """Return the record with a row, in the place of the one that it measures again."""
        kept = [other for other in self.rows if other.key != row.key]
        return self.model_copy(update={"rows": (*kept, row)})

    def write(self, path: Path) -> None:
        """Write the file, a line per row; a reader sees the old file or the new one."""
        dumped = self.model_dump(mode="json")
        rows = ",\n".join("  " + json.dumps(_short_figures(row)) for row in dumped.pop("rows"))
        head = json.dumps(dumped, indent=1).removesuffix("\n}")
        beside = path.with_suffix(".json.new")
        beside.write_text(f'{head},\n "rows": [\n{rows}\n ]\n}}\n', encoding="utf-8")
        beside.replace(path)


def _short_figures(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its figures rounded; what was asked for stays as it is, since a later run compares it."""

    def short(value: Any) -> Any:
        if isinstance(value, list):
            return [short(part) for part in value]
        return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value

    return {name: short(value) for name, value in row.items()}
