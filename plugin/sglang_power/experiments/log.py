"""The log of one server: a JSONL file per process, written by a thread of its own.

Serving hands over a line and goes on: it never waits for a disk, and no trouble with one reaches a request.
`kill -9` loses what the thread had not taken yet, less than a second on a disk that keeps up; a power
failure loses one second more, what was not synced. Knows no experiment; reading is `analysis.reading`.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

from sglang_power.errors import ConfigError
from sglang_power.experiments.log_files import LogFiles
from sglang_power.experiments.records import Line

logger = logging.getLogger("sglang_power")

SYNC_SECONDS = 1.0
CLOSE_SECONDS = 10.0
"""How long a server that ends waits for a disk that hangs."""

QUEUED_BYTES = 16 * 2**20
"""What may wait for the disk; lines beyond it are dropped."""

Trouble = Literal["full", "closed", "write", "sync"]
"""What went wrong: too much was waiting, the log was closed, the line was not written, or not synced."""

OnTrouble: TypeAlias = Callable[[Trouble, int], None]
"""Told the trouble and how many lines it cost, from whichever thread met it."""


class LineLog:
    """Whole lines in files of this process, `<host>-<pid>-<start>.<n>.jsonl`.

    A process that is forked off writes files of its own, from its first line on.

    Args:
        directory: made where it does not exist.
        rotate_bytes: no file grows beyond it, but for a single longer line.
        on_trouble: see OnTrouble.

    Raises:
        ConfigError: the directory cannot be made, or not be written to.
    """

    def __init__(self, directory: Path, rotate_bytes: int, on_trouble: OnTrouble) -> None:
        _check_directory(directory)
        self._directory, self._rotate_bytes, self._on_trouble = directory, rotate_bytes, on_trouble
        self._writers: dict[int, _Writer] = {}

    def write(self, line: Line) -> None:
        """Hand over one line. Returns at once, raises nothing of the disk's."""
        self._writer().put(line.model_dump_json().encode() + b"\n")

    def close(self) -> None:
        """Write and sync what waits, for ten seconds at most; later lines are dropped and counted."""
        self._writer().close()

    def _writer(self) -> _Writer:
        """This process's own: after a fork the parent's has no thread, and its lock may be held for ever."""
        pid = os.getpid()
        if pid not in self._writers:
            files = LogFiles(self._directory, self._rotate_bytes)
            self._writers.setdefault(pid, _Writer(files, self._on_trouble))
        return self._writers[pid]


class _Writer:
    """Moves lines from memory to files, on a thread that starts with the first of them."""

    def __init__(self, files: LogFiles, on_trouble: OnTrouble) -> None:
        self._files, self._on_trouble = files, on_trouble
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._closed = False
        self._thread: threading.Thread | None = None
        self._lost = 0

    def put(self, line: bytes) -> None:
        """Queue a line, or drop it where too much waits."""
        with self._changed:
            trouble = self._refusal(line)
            if trouble is None:
                self._waiting.append(line)
                self._bytes += len(line)
                self._start()
                self._changed.notify()
        if trouble is not None:
            self._on_trouble(trouble, 1)

    def close(self) -> None:
        """Wait until everything is written, or the disk has hung for too long."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)
            if self._thread.is_alive():
                logger.error("experiment log: its disk hangs; what waits for it is lost")

    def _refusal(self, line: bytes) -> Trouble | None:
        if self._closed:
            return "closed"
        return "full" if self._bytes + len(line) > QUEUED_BYTES else None

    def _start(self) -> None:
        if self._thread is None:
            # A daemon, so that a process that forgets `close` still ends; `atexit` then closes in its place.
            self._thread = threading.Thread(target=self._run, name="sglang-power-log", daemon=True)
            self._thread.start()
            atexit.register(self.close)

    def _run(self) -> None:
        synced = time.monotonic()
        while (lines := self._take()) is not None:
            for line in lines:
                self._append(line)
            if time.monotonic() - synced >= SYNC_SECONDS:
                self._sync()
                synced = time.monotonic()
        self._sync()
        self._files.close()

    def _take(self) -> list[bytes] | None:
        """All that waits, perhaps nothing after a second; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed, SYNC_SECONDS)
            if self._closed and not self._waiting:
                return None
            lines = list(self._waiting)
            self._waiting.clear()
            self._bytes = 0
            return lines

    def _append(self, line: bytes) -> None:
        try:
            self._files.append(line)
        except OSError as error:
            if not self._lost:
                logger.error("experiment log: %s; lines are dropped until it can be written again", error)
            self._lost += 1
            self._on_trouble("write", 1)
            return
        if self._lost:
            logger.warning("experiment log: written again; %d lines were dropped", self._lost)
            self._lost = 0

    def _sync(self) -> None:
        try:
            self._files.sync()
        except OSError as error:
            logger.error("experiment log: not synced to its disk: %s", error)
            self._on_trouble("sync", 0)


def _check_directory(directory: Path) -> None:
    hint = "Correct `experiments.log` in the server's configuration, or the directory's owner"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"experiments.log={str(directory)!r}: {error}. {hint}") from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigError(f"experiments.log={str(directory)!r}: not writable. {hint}")
