"""Lines with numbers for the tests of the log, and processes that write them until something happens."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sglang_power.experiments.log import LineLog, Trouble
from sglang_power.experiments.records import LINE, Change

ROTATE_BYTES = 64 * 2**20


def line(number: int) -> Change:
    """A line that carries its number."""
    return Change(at=time.time(), experiment="e", config="c", phase=number, enrolling=True, why="loaded")


def files(directory: Path) -> list[Path]:
    """Of one process, in the order in which they were opened."""
    return sorted(directory.iterdir(), key=lambda path: int(path.name.split(".")[-2]))


def numbers(*paths: Path) -> list[int]:
    """Of every line; fails on one that is not whole."""
    texts = [path.read_bytes() for path in paths]
    assert all(text.endswith(b"\n") for text in texts if text)
    lines = [LINE.validate_json(one) for text in texts for one in text.splitlines()]
    return [one.phase for one in lines if isinstance(one, Change)]


def keep_writing(directory: Path) -> None:
    """Write 10,000 lines in about three seconds, telling each one; then wait to be killed."""
    log = LineLog(directory, ROTATE_BYTES, _fail)
    for number in range(10_000):
        log.write(line(number))
        print(number, time.time(), flush=True)
        time.sleep(0.0002)
    time.sleep(3600)


def fill_the_disk(directory: Path) -> None:
    """Write lines before, while and after files may not grow by a whole line; tell what was lost."""
    lost: list[Trouble] = []
    log = LineLog(directory, ROTATE_BYTES, lambda trouble, dropped: lost.extend([trouble] * dropped))
    log.write(line(0))
    _until(lambda: _size(directory) > 0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_size(directory) + 10, resource.RLIM_INFINITY))
    for number in (1, 2):
        log.write(line(number))
    _until(lambda: len(lost) == 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    log.write(line(3))
    log.close()
    print(*lost)


def fork(directory: Path) -> None:
    """Write in a process and in a child that was forked off it."""
    log = LineLog(directory, ROTATE_BYTES, _fail)
    log.write(line(0))
    child = multiprocessing.get_context("fork").Process(target=_write_and_close, args=(log, 1))
    child.start()
    child.join()
    _write_and_close(log, 2)
    print(child.exitcode)


def forget_to_close(directory: Path) -> None:
    """End without closing the log."""
    log = LineLog(directory, ROTATE_BYTES, _fail)
    for number in range(1000):
        log.write(line(number))


def _write_and_close(log: LineLog, number: int) -> None:
    log.write(line(number))
    log.close()


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def _until(holds: Callable[[], bool]) -> None:
    while not holds():
        time.sleep(0.01)


def _fail(trouble: Trouble, dropped: int) -> None:
    raise AssertionError(f"{trouble}: {dropped} lines lost")


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
