"""Reads tasks from files: data sets in the formats that they are published in, and a user's own lines.

A file is read and never written. Whatever is wrong with it is told with its name and line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from xml.etree import ElementTree

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sglang_power.answers.equivalence import CHOICE
from sglang_power.answers.extraction import Regex
from sglang_power.answers.numerals import read_number
from sglang_power.errors import ConfigError, RequestError
from sglang_power.evaluation.items import Item, Kind
from sglang_power.fields import conflict

Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """A record of a file: its place, for errors, its number, and what it says."""

    where: str
    number: int
    values: Json

    def text(self, *names: str) -> str:
        """Return the first of some fields that is there, as text.

        Raises:
            ConfigError: none is, or it is neither text nor a number.
        """
        for name in names:
            value = self.values.get(name)
            if isinstance(value, str | int | float) and not isinstance(value, bool):
                return str(value)
        raise ConfigError(
            f"{self.where}: no {' or '.join(names)}; it has {', '.join(self.values) or 'nothing'}"
        )

    def name(self, *names: str) -> str:
        """Return the record's own name, or its number."""
        found = next((self.values[name] for name in names if self.values.get(name) is not None), self.number)
        return str(found)


Reader: TypeAlias = Callable[[Line], Item]


class OwnLine(BaseModel):
    """A line of a user's own file.

    Args:
        prompt: sent as it is.
        answer: what is right; of kind code a program that fails where the answer's is wrong.
        id: unique; the line's number where absent.
        kind: `number` or `choice` where the answer is one, `regex` beside a pattern, else `text`.
        pattern: its last match, or the group of it, is the answer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, str_min_length=1)

    prompt: str
    answer: str | int | float
    id: str | int | None = None
    kind: Kind | None = None
    pattern: str | None = Field(default=None, max_length=1000)

    @model_validator(mode="after")
    def _pattern_fits(self) -> OwnLine:
        """Check that there is a pattern where one is needed, and that it can be searched."""
        if (self.pattern is None) == (self.kind == "regex"):
            raise conflict("pattern", "goes with kind regex, and with no other", "Give both or neither")
        if self.pattern is not None:
            try:
                Regex.of(self.pattern)
            except RequestError as error:
                raise conflict("pattern", error.problem, error.hint) from error
        return self


def read_own(path: Path) -> list[Item]:
    """Return the items of a user's own JSONL file.

    Raises:
        ConfigError: unreadable, empty, or a line that is no item; with its number.
    """
    return _unique(path, [_own(line) for line in json_lines(path)])


def _own(line: Line) -> Item:
    try:
        told = OwnLine.model_validate(line.values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or str(first.get("ctx", {}).get("field", ""))
        raise ConfigError(f"{line.where}, field {field!r}: {first['msg']}") from error
    gold = str(told.answer)
    return Item(
        id=line.name("id"),
        question=told.prompt,
        gold=gold,
        kind=told.kind or _kind_of(gold),
        raw=True,
        pattern=told.pattern,
        letters=string.ascii_uppercase,
    )


def _kind_of(answer: str) -> Kind:
    if read_number(answer) is not None:
        return "number"
    return "choice" if CHOICE.key(answer) is not None else "text"


def read_with(reader: Reader, path: Path) -> list[Item]:
    """Return the items of a data set.

    Args:
        reader: of one record.
        path: JSON lines, one JSON list, CSV with a head, or ASDiv's XML; also behind .gz.

    Raises:
        ConfigError: unreadable, empty, or a record that is none; with its place.
    """
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    lines = {".csv": _csv_rows, ".xml": _asdiv_problems}.get(suffix, json_lines)
    return _unique(path, [reader(line) for line in lines(path)])


def _unique(path: Path, items: list[Item]) -> list[Item]:
    if not items:
        raise ConfigError(f"{path}: no items")
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise ConfigError(f"{path}: two items have the id {item.id!r}; give each its own")
        seen.add(item.id)
    return items


def read_text(path: Path) -> str:
    """Return what a file says, unpacked where its name ends with .gz.

    Raises:
        ConfigError: it cannot be read, or is no UTF-8.
    """
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error


def json_lines(path: Path) -> Iterator[Line]:
    """Yield the objects of a JSONL file, or of one JSON list.

    Raises:
        ConfigError: a line that is no JSON object, with its number.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        for number, told in enumerate(_parsed(str(path), text), start=1):
            yield _line(f"{path}, entry {number}", number, told)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield _line(where, number, _parsed(where, line))


def _parsed(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not JSON: {error}") from error


def _line(where: str, number: int, told: Any) -> Line:
    if not isinstance(told, dict):
        raise ConfigError(f"{where}: a JSON object is needed, not {type(told).__name__}")
    return Line(where, number, told)


def _csv_rows(path: Path) -> Iterator[Line]:
    rows: Iterable[Mapping[str, Any]] = csv.DictReader(io.StringIO(read_text(path), newline=""))
    for number, row in enumerate(rows, start=1):
        yield Line(f"{path}, row {number}", number, {str(name): value for name, value in row.items()})


def _asdiv_problems(path: Path) -> Iterator[Line]:
    try:
        root = ElementTree.fromstring(read_text(path))
    except ElementTree.ParseError as error:
        raise ConfigError(f"{path}: not XML: {error}") from error
    for number, problem in enumerate(root.iter("Problem"), start=1):
        told = {child.tag: (child.text or "").strip() for child in problem}
        yield Line(f"{path}, problem {number}", number, {"ID": problem.get("ID"), **told})
