"""Offline outcomes, from a table, as feedback lines in a file of their own beside the servers' logs.

All rows are checked before anything is written, and the file appears at once: a report that runs meanwhile
sees all of it or nothing. The same table twice makes duplicates, which the report counts and does not use. A
corrected table counts instead of the one before it: files are named, and so read, by when they were made.
"""

from __future__ import annotations

import csv
import json
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TextIO

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from sglang_power.errors import RecordError
from sglang_power.experiments.feedback import ExposureId
from sglang_power.experiments.model import Name
from sglang_power.experiments.records import Feedback, Value

TOLD = 10
"""Bad rows that are told one by one."""


def _no_boolean(value: object) -> object:
    """Pydantic would take True for 1, as a value and as a time; the route for feedback does not, either."""
    if isinstance(value, bool):
        raise PydanticCustomError("boolean", "Input should be a number, not a boolean")
    return value


class Row(BaseModel):
    """One outcome.

    Args:
        exposure_id: which answer, as the response to the request said.
        metric: defined by the experiment, with `source: feedback`.
        value: of the metric; see records.LARGEST_VALUE.
        at: when it was known: seconds since 1970, or ISO 8601 with a time zone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    exposure_id: ExposureId
    metric: Name
    value: Annotated[Value, BeforeValidator(_no_boolean)]
    at: Annotated[AwareDatetime, BeforeValidator(_no_boolean)]


@dataclass(frozen=True)
class Unusable:
    """A row that cannot be written, and why."""

    problem: str


@dataclass(frozen=True)
class Ingested:
    """What was written: how many lines, and where."""

    rows: int
    path: Path


def ingest(table: Path, log: Path, *, now: float) -> Ingested:
    """Write a table's outcomes into a log.

    Args:
        table: a .csv file with a head, or a .jsonl file with one object per line; its fields are Row's.
        log: directory of the servers' JSONL files.
        now: seconds since 1970; later outcomes are refused.

    Raises:
        RecordError: another kind of file, no such directory, no rows, or bad ones; nothing was written.
    """
    if not log.is_dir():
        raise RecordError(str(log), "is no directory", "Name the directory of the server's log")
    name = f"ingest-{time.time_ns():020d}-{uuid.uuid4().hex}.jsonl"
    half = log / f".{name}.{os.getpid()}"
    try:
        with half.open("w", encoding="utf-8") as out:
            rows = _copied(table, out, now)
            out.flush()
            os.fsync(out.fileno())
        return Ingested(rows, half.replace(log / name))
    finally:
        half.unlink(missing_ok=True)


def _copied(table: Path, out: TextIO, now: float) -> int:
    """Write all rows as lines; how many."""
    rows, problems = 0, list[str]()
    for number, content in _contents(table):
        row = _checked(content, now)
        if isinstance(row, Unusable):
            problems.append(f"line {number}, {row.problem}")
        else:
            out.write(_feedback(row).model_dump_json() + "\n")
            rows += 1
    if problems:
        raise _refused(table, problems)
    if not rows:
        raise RecordError(table.name, "holds no outcomes", "Give a row at least")
    return rows


def _contents(table: Path) -> Iterator[tuple[int, Any]]:
    """Line number and what the row holds, or Unusable."""
    readers = {".csv": _csv, ".jsonl": _jsonl}
    if table.suffix.lower() not in readers:
        raise RecordError(table.name, "neither .csv nor .jsonl", "Name the table by what is in it")
    try:
        yield from readers[table.suffix.lower()](table)
    except UnicodeDecodeError as error:
        raise RecordError(table.name, f"not UTF-8 ({error.reason})", "Save it as UTF-8") from error


def _csv(table: Path) -> Iterator[tuple[int, Any]]:
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                yield reader.line_num, Unusable("more cells than the head") if None in row else row
        except csv.Error as error:
            yield reader.line_num + 1, Unusable(str(error))


def _jsonl(table: Path) -> Iterator[tuple[int, Any]]:
    with table.open(encoding="utf-8-sig") as file:
        for number, text in enumerate(file, start=1):
            if text.strip():
                yield number, _json(text)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        return Unusable(f"not JSON ({error})")


def _checked(content: Any, now: float) -> Row | Unusable:
    if isinstance(content, Unusable):
        return content
    try:
        row = Row.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        return Unusable(f"{'.'.join(map(str, first['loc'])) or 'row'}: {first['msg']}")
    if row.at.timestamp() > now:
        return Unusable(f"at: {row.at:%Y-%m-%d %H:%M} has not come yet")
    return row


def _feedback(row: Row) -> Feedback:
    return Feedback(at=row.at.timestamp(), exposure_id=row.exposure_id, metric=row.metric, value=row.value)


def _refused(table: Path, problems: list[str]) -> RecordError:
    more = [f"and {len(problems) - TOLD:,} more bad rows"] if len(problems) > TOLD else []
    return RecordError(table.name, "; ".join([*problems[:TOLD], *more]), "Nothing was written")
