"""Files that hold whole lines: appended, rotated, synced. Knows neither threads nor what a line says."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from pathlib import Path

MODE = 0o600


class LogFiles:
    """The files of one process, one after the other. Nothing is opened before the first line.

    Args:
        directory: made again where it has vanished.
        rotate_bytes: a line that would grow the file beyond it goes to the next one.
    """

    def __init__(self, directory: Path, rotate_bytes: int) -> None:
        host = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())
        self._stem = directory / f"{host}-{os.getpid()}-{int(time.time())}"
        self._rotate_bytes = rotate_bytes
        self._number = 0
        self._file: int | None = None
        self._size = 0
        self._unsynced = False

    def append(self, line: bytes) -> None:
        """Write one line.

        Raises:
            OSError: it could not be written, and nothing of it is left in the file.
        """
        if self._file is not None and self._size and self._size + len(line) > self._rotate_bytes:
            self._rotate()
        if self._file is None:
            self._file = self._open()
        try:
            _write(self._file, line)
        except OSError:
            self._cut(self._file)
            raise
        self._size += len(line)
        self._unsynced = True

    def sync(self) -> None:
        """Bring what was written onto the disk.

        Raises:
            OSError: the disk failed, or somebody deleted the file; the next line goes to a new one.
        """
        if self._file is None or not self._unsynced:
            return
        self._unsynced = False
        try:
            os.fsync(self._file)
            if not os.fstat(self._file).st_nlink:
                raise FileNotFoundError("the file was deleted while it was written to")
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file; the next line opens another one."""
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):  # Only a failed late write reports here, and sync came before.
                os.close(file)

    def _rotate(self) -> None:
        try:
            self.sync()
        finally:
            self.close()

    def _open(self) -> int:
        self._stem.parent.mkdir(parents=True, exist_ok=True)
        while True:
            path = f"{self._stem}.{self._number}.jsonl"
            self._number += 1
            with contextlib.suppress(FileExistsError):  # Of a container with the same name and process id.
                file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, MODE)
                self._size = 0
                return file

    def _cut(self, file: int) -> None:
        """Remove what there is of a line; where that fails, too, it stays the torn last line of its file."""
        try:
            os.ftruncate(file, self._size)
        except OSError:
            self.close()


def _write(file: int, line: bytes) -> None:
    left = memoryview(line)
    while left:
        left = left[os.write(file, left) :]
