"""Reads the log of a server: every `*.jsonl` of a directory, one line after the other.

Owns what is done with lines that cannot be read. Knows no experiment; `requests` picks what it needs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from sglang_power.errors import RecordError
from sglang_power.experiments.records import LINE, VERSION, Change, Line

KEPT = 20
"""Unreadable lines that are told one by one; the rest are only counted."""


@dataclass
class UnreadableLines:
    """Lines that say nothing.

    Args:
        torn: ends of files that a killed process, or one that is just writing, left behind.
        bad: others.
        told: "file:line: problem" of the first bad ones.
    """

    torn: int = 0
    bad: int = 0
    told: list[str] = field(default_factory=list)

    def add(self, where: str, problem: str) -> None:
        """Count a bad line."""
        self.bad += 1
        if len(self.told) < KEPT:
            self.told.append(f"{where}: {problem}")


def log_files(directory: Path) -> list[Path]:
    """The files of a log, in order of their names: those of `ingest` in order of their ingestion.

    Raises:
        RecordError: there is no such directory.
    """
    if not directory.is_dir():
        raise RecordError(str(directory), "is no directory", "Name the directory of the server's log")
    return sorted(directory.glob("*.jsonl"))


def lines(directory: Path, unreadable: UnreadableLines) -> Iterator[Line]:
    """Every line of a log; nothing is kept.

    Args:
        directory: of the JSONL files, in any order of time.
        unreadable: counts what cannot be read.

    Raises:
        RecordError: no such directory, or a line of another version of the schema.
    """
    for path in log_files(directory):
        with path.open("rb") as file:
            for number, text in enumerate(file, start=1):
                try:
                    yield LINE.validate_json(text)
                except ValidationError as error:
                    _note(text, f"{path.name}:{number}", error, unreadable)


def changes(directory: Path, experiment: str, now: float) -> Iterator[Change]:
    """Change lines of one experiment until some moment; others are not even parsed.

    Raises:
        RecordError: no such directory.
    """
    for path in log_files(directory):
        with path.open("rb") as file:
            for text in file:
                if b'"change"' not in text:
                    continue
                try:
                    line = LINE.validate_json(text)
                except ValidationError:
                    continue  # Told by `lines`.
                if isinstance(line, Change) and line.experiment == experiment and line.at <= now:
                    yield line


def _note(text: bytes, where: str, error: ValidationError, unreadable: UnreadableLines) -> None:
    """Count a line that is none; refuse one of another schema."""
    _check_version(text, where)
    if not text.endswith(b"\n"):
        unreadable.torn += 1
    elif text.strip():
        problem = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, problem["loc"]))
        unreadable.add(where, f"{place}: {problem['msg']}" if place else problem["msg"])


def _check_version(text: bytes, where: str) -> None:
    try:
        content = json.loads(text)
    except ValueError:
        return
    version = content.get("version") if isinstance(content, dict) else None
    if version is not None and version != VERSION:
        raise RecordError(
            f"{where}: version",
            f"{str(version)[:20]!r} is not {VERSION}, the one that is known here",
            "Use the sglang-power that wrote it, or a newer one",
        )
