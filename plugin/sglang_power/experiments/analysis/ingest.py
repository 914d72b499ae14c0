"""Offline outcomes, from a table, as feedback lines in a file of their own beside the servers' logs.

A row names its answer by the exposure id, or by whose request it was and when: then the log is asked which
enrolled request of that unit is nearest in time.

All rows are checked before anything is written, and the file appears at once: a report that runs meanwhile
sees all of it or nothing. The same table twice makes duplicates, which the report counts and does not use. A
corrected table counts instead of the one before it: files are named, and so read, by when they were made.
"""

from __future__ import annotations

import bisect
import csv
import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, TextIO, TypeAlias

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from sglang_power.errors import RecordError
from sglang_power.experiments.analysis.reading import UnreadableLines, lines
from sglang_power.experiments.feedback import ExposureId
from sglang_power.experiments.model import Name
from sglang_power.experiments.records import Enrolment, Feedback, Value, unit_hash

TOLD = 10
"""Bad rows that are told one by one."""

WITHIN_S = 60.0
"""How far the time of a row may be from that of its request: clocks differ, and answers take time."""

Asked: TypeAlias = Mapping[str, Sequence[tuple[float, str]]]
"""Hash of a unit -> when it was enrolled, in order, and the exposure ids."""


def _no_boolean(value: object) -> object:
    """Pydantic would take True for 1, as a value and as a time; the route for feedback does not, either."""
    if isinstance(value, bool):
        raise PydanticCustomError("boolean", "Input should be a number, not a boolean")
    return value


def _nothing(value: object) -> object:
    """An empty cell of a table that has both kinds of keys."""
    return None if value == "" else value


class IngestedOutcome(BaseModel):
    """One outcome.

    Args:
        exposure_id: which answer, as the response to the request said; or instead of it:
        unit: whose request, as the client named the user or the session; switchbacks have no such units.
        time: when, like `at`; the nearest of the unit's enrolled requests is meant.
        metric: defined by the experiment, with `source: feedback`.
        value: of the metric; see records.LARGEST_VALUE.
        at: when it was known: seconds since 1970, or ISO 8601 with a time zone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    exposure_id: Annotated[ExposureId | None, BeforeValidator(_nothing)] = None
    unit: Annotated[Annotated[str, Field(min_length=1)] | None, BeforeValidator(_nothing)] = None
    time: Annotated[AwareDatetime | None, BeforeValidator(_no_boolean), BeforeValidator(_nothing)] = None
    metric: Name
    value: Annotated[Value, BeforeValidator(_no_boolean)]
    at: Annotated[AwareDatetime, BeforeValidator(_no_boolean)]

    @model_validator(mode="after")
    def _has_one_key(self) -> Self:
        given = (self.exposure_id is not None, self.unit is not None, self.time is not None)
        if given not in ((True, False, False), (False, True, True)):
            raise PydanticCustomError("key", "Give exposure_id, or unit and time")
        return self


@dataclass(frozen=True)
class Unusable:
    """A row that cannot be written, and why."""

    problem: str


@dataclass(frozen=True)
class Ingested:
    """What was written: how many lines, where, and how many rows are of no request that was enrolled."""

    rows: int
    path: Path
    unmatched: int = 0


def ingest(
    table: Path, log: Path, *, now: float, key: bytes | None = None, within_s: float = WITHIN_S
) -> Ingested:
    """Write a table's outcomes into a log.

    Args:
        table: a .csv file with a head, or a .jsonl file with one object per line; its fields are Row's.
        log: directory of the servers' JSONL files.
        now: seconds since 1970; later outcomes are refused.
        key: what the servers hash unit names with; needed where rows name units.
        within_s: see WITHIN_S.

    Raises:
        RecordError: another kind of file, no such directory, no rows, or bad ones, none of whose requests was
            enrolled, or units without a key; nothing was written.
    """
    if not log.is_dir():
        raise RecordError(str(log), "is no directory", "Name the directory of the server's log")
    finder = _Finder(_asked(table, log, key), key, within_s)
    name = f"ingest-{time.time_ns():020d}-{uuid.uuid4().hex}.jsonl"
    half = log / f".{name}.{os.getpid()}"
    try:
        with half.open("w", encoding="utf-8") as out:
            rows = _copied(table, out, now, finder)
            out.flush()
            os.fsync(out.fileno())
        return Ingested(rows, half.replace(log / name), finder.unmatched)
    finally:
        half.unlink(missing_ok=True)


class _Finder:
    """Says which answer a row is about.

    Args:
        asked: requests of the units in the table.
        key, within_s: see `ingest`.

    Attributes:
        unmatched: rows of no request that was enrolled.
    """

    def __init__(self, asked: Asked, key: bytes | None, within_s: float) -> None:
        self._asked, self._key, self._within_s = asked, key, within_s
        self.unmatched = 0

    def exposure_id(self, row: IngestedOutcome) -> str | None:
        """The exposure of a row; None, and counted, where there is none."""
        found = row.exposure_id or self._nearest(row)
        self.unmatched += found is None
        return found

    def _nearest(self, row: IngestedOutcome) -> str | None:
        assert row.unit is not None
        assert row.time is not None
        assert self._key is not None
        requests, at = self._asked.get(unit_hash(row.unit, self._key), ()), row.time.timestamp()
        place = bisect.bisect_left(requests, (at, ""))
        near = requests[max(0, place - 1) : place + 1]
        distance, found = min(((abs(when - at), exposure) for when, exposure in near), default=(0.0, None))
        return found if distance <= self._within_s else None


def _asked(table: Path, log: Path, key: bytes | None) -> Asked:
    """Enrolled requests of the units that a table names; the log is read only where it names some."""
    units = {row.unit for row in _rows(table) if row.unit is not None}
    if not units:
        return {}
    if key is None:
        hint = "Export the key that the servers hash units with (SGLANG_POWER_UNIT_KEY), or give exposure_id"
        raise RecordError(table.name, "names units, and there is no key to find them with", hint)
    asked: dict[str, list[tuple[float, str]]] = {unit_hash(unit, key): [] for unit in units}
    for line in lines(log, UnreadableLines()):
        if isinstance(line, Enrolment) and line.unit in asked:
            asked[line.unit].append((line.at, line.exposure_id))
    return {unit: sorted(requests) for unit, requests in asked.items()}


def _rows(table: Path) -> Iterable[IngestedOutcome]:
    """Rows that are right, for a first look; what is wrong with others is told by `_copied`."""
    checked = (_checked(content, float("inf")) for _, content in _contents(table))
    return (row for row in checked if isinstance(row, IngestedOutcome))


def _copied(table: Path, out: TextIO, now: float, finder: _Finder) -> int:
    """Write all rows as lines; how many."""
    rows, problems = 0, list[str]()
    for number, content in _contents(table):
        row = _checked(content, now)
        if isinstance(row, Unusable):
            problems.append(f"line {number}, {row.problem}")
        elif (exposure_id := finder.exposure_id(row)) is not None:
            out.write(_feedback(row, exposure_id).model_dump_json() + "\n")
            rows += 1
    if problems:
        raise _refused(table, problems)
    if not rows and finder.unmatched:
        hint = "Look at the key, at the names of units, and at the time zone; --within allows for clocks"
        raise RecordError(table.name, "no row is of a request that was enrolled", hint)
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


def _checked(content: Any, now: float) -> IngestedOutcome | Unusable:
    if isinstance(content, Unusable):
        return content
    try:
        row = IngestedOutcome.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        return Unusable(f"{'.'.join(map(str, first['loc'])) or 'row'}: {first['msg']}")
    if row.at.timestamp() > now:
        return Unusable(f"at: {row.at:%Y-%m-%d %H:%M} has not come yet")
    return row


def _feedback(row: IngestedOutcome, exposure_id: str) -> Feedback:
    return Feedback(at=row.at.timestamp(), exposure_id=exposure_id, metric=row.metric, value=row.value)


def _refused(table: Path, problems: list[str]) -> RecordError:
    more = [f"and {len(problems) - TOLD:,} more bad rows"] if len(problems) > TOLD else []
    return RecordError(table.name, "; ".join([*problems[:TOLD], *more]), "Nothing was written")
