"""The folder of a run: answers are appended one by one, so that nothing that was asked for is asked again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Self

from pydantic import BaseModel, ValidationError

from sglang_power.errors import ConfigError, HostError
from sglang_power.evaluation.records import Kept, Key, Run

RUN: Final = "run.json"
ANSWERS: Final = "answers.jsonl"


class Folder:
    """Where a run keeps its answers.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: int | None = None

    def run(self) -> Run | None:
        """Return what was asked for here before; None where nothing was.

        Raises:
            ConfigError: run.json cannot be read.
        """
        path = self.path / RUN
        if not path.exists():
            return None
        try:
            return Run.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise ConfigError(f"{path}: {_first(error)}; write to another folder, or --fresh") from error

    def begin(self, run: Run, *, fresh: bool) -> Run:
        """Note what is asked for, and return it with what was asked for here before.

        Args:
            run: what is asked for.
            fresh: throw away what is there.

        Raises:
            ConfigError: other answers are there already, or the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if fresh:
                for name in (RUN, ANSWERS):
                    (self.path / name).unlink(missing_ok=True)
            before = self.run()
            if before is not None:
                if (other := run.difference(before)) is not None:
                    where = f"{self.path} holds answers of another run"
                    raise ConfigError(
                        f"{where}: {other}. Write to another folder, or begin anew with --fresh"
                    )
                run = run.joined(before)
            write_whole(self.path / RUN, run)
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be written: {error}") from error
        return run

    def answers(self) -> dict[Key, Kept]:
        """Return the answers that are kept. A last line that was cut off while it was written is none.

        Raises:
            ConfigError: another line that is no answer, with its number; the file stays as it is.
        """
        path = self.path / ANSWERS
        if not path.exists():
            return {}
        *lines, _ = path.read_bytes().split(b"\n")
        kept: dict[Key, Kept] = {}
        for number, line in enumerate(lines, start=1):
            try:
                answer = Kept.model_validate_json(line)
            except ValidationError as error:
                raise ConfigError(f"{path}, line {number}: {_first(error)}") from error
            kept[answer.key] = answer
        return kept

    def __enter__(self) -> Self:
        """Open the answers' file, without the end of a line that was cut off.

        Raises:
            ConfigError: it cannot be written.
        """
        path = self.path / ANSWERS
        try:
            self._stream = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            os.ftruncate(self._stream, path.read_bytes().rfind(b"\n") + 1)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error}") from error
        return self

    def append(self, answer: Kept) -> None:
        """Write an answer behind the others, as a whole or not at all.

        Raises:
            HostError: there is no room, or the file cannot be written any more.
        """
        assert self._stream is not None, "opened by the with-statement"
        line = answer.model_dump_json().encode() + b"\n"
        end = os.fstat(self._stream).st_size
        try:
            written = os.write(self._stream, line)
            while written < len(line):
                written += os.write(self._stream, line[written:])
        except OSError as error:
            os.ftruncate(self._stream, end)
            raise HostError(f"{self.path / ANSWERS} cannot be written: {error.strerror}") from error

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        if self._stream is not None:
            os.close(self._stream)
            self._stream = None


def write_whole(path: Path, model: BaseModel) -> None:
    """Write a model as JSON; a reader sees the old file or the new one."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(model.model_dump_json(indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def _first(error: OSError | ValidationError) -> str:
    if isinstance(error, OSError):
        return str(error)
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'not an answer'}: {first['msg']}"
