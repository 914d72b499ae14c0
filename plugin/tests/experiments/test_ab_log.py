"""The log of experiments: whole lines only, whatever happens to the disk or the process."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
import time
from pathlib import Path

import pytest
from ab_log_child import ROTATE_BYTES, files, line, numbers
from sglang_power.errors import ConfigError
from sglang_power.experiments import log as log_module
from sglang_power.experiments.log import LineLog, Trouble

Lost = list[tuple[Trouble, int]]


def opened(directory: Path, rotate_bytes: int = ROTATE_BYTES) -> tuple[LineLog, Lost]:
    lost: Lost = []
    return LineLog(directory, rotate_bytes, lambda trouble, dropped: lost.append((trouble, dropped))), lost


def test_lines_arrive_whole_and_in_order(tmp_path: Path) -> None:
    log, lost = opened(tmp_path)
    for number in range(500):
        log.write(line(number))
    log.close()
    assert numbers(*files(tmp_path)) == list(range(500))
    assert not lost


def test_nothing_is_opened_before_the_first_line(tmp_path: Path) -> None:
    log, _ = opened(tmp_path / "new" / "log")
    log.close()
    assert not files(tmp_path / "new" / "log")


def test_only_the_owner_may_read_a_file_that_names_host_and_process(tmp_path: Path) -> None:
    log, _ = opened(tmp_path)
    log.write(line(0))
    log.close()
    (path,) = files(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.name.rsplit("-", 2)[1] == str(os.getpid())


def test_files_rotate_by_size_between_lines(tmp_path: Path) -> None:
    log, _ = opened(tmp_path, rotate_bytes=1000)
    for number in range(100):
        log.write(line(number))
    log.close()
    assert numbers(*files(tmp_path)) == list(range(100))
    sizes = [path.stat().st_size for path in files(tmp_path)]
    assert max(sizes) <= 1000
    assert min(sizes[:-1]) > 700


def test_a_line_longer_than_a_file_may_be_is_written_all_the_same(tmp_path: Path) -> None:
    log, lost = opened(tmp_path, rotate_bytes=10)
    for number in range(3):
        log.write(line(number))
    log.close()
    assert [numbers(path) for path in files(tmp_path)] == [[0], [1], [2]]
    assert not lost


def test_two_processes_of_the_same_name_do_not_share_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1e9)
    logs = [opened(tmp_path)[0] for _ in range(2)]
    for number, log in enumerate(logs):
        log.write(line(number))
        log.close()
    assert [numbers(path) for path in files(tmp_path)] == [[0], [1]]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_failing_write_costs_its_line_and_leaves_nothing_partial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    failing: set[int] = {2, 3}
    write = os.write

    def half_then_fail(file: int, data: memoryview) -> int:
        told = bytes(data)
        if told.startswith(b"{") and json.loads(told)["phase"] in failing:
            return write(file, data[: len(data) // 2])
        if told.startswith(b"{"):
            return write(file, data)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "write", half_then_fail)
    log, lost = opened(tmp_path)
    for number in range(6):
        log.write(line(number))
    log.close()
    monkeypatch.undo()
    assert numbers(*files(tmp_path)) == [0, 1, 4, 5]
    assert len(files(tmp_path)) == 1
    assert lost == [("write", 1), ("write", 1)]


def test_where_the_cut_fails_too_the_torn_line_is_the_last_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, failures = os.write, iter([True])

    def fail_once(file: int, data: memoryview) -> int:
        if b'"phase":1' in bytes(data) and next(failures, False):
            write(file, data[:20])
            raise OSError(errno.EIO, "gone")
        return write(file, data)

    def fail(_file: int, _size: int) -> None:
        raise OSError(errno.EIO, "gone")

    monkeypatch.setattr(os, "write", fail_once)
    monkeypatch.setattr(os, "ftruncate", fail)
    log, lost = opened(tmp_path)
    for number in range(4):
        log.write(line(number))
    log.close()
    monkeypatch.undo()
    first, second = files(tmp_path)
    assert numbers(second) == [2, 3]
    whole, torn = first.read_bytes().split(b"\n")
    assert (json.loads(whole)["phase"], len(torn)) == (0, 20)
    assert lost == [("write", 1)]


def test_trouble_and_its_end_are_each_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = os.write

    def fail_early(file: int, data: memoryview) -> int:
        if json.loads(bytes(data))["phase"] < 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data)

    monkeypatch.setattr(os, "write", fail_early)
    log, _ = opened(tmp_path)
    for number in range(8):
        log.write(line(number))
    log.close()
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert "No space left" in told[0]
    assert "5 lines were dropped" in told[1]


def hang_disk(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Make every write wait until the second event is set; the first says that one waits."""
    hangs, goes_on, write = threading.Event(), threading.Event(), os.write

    def hang(file: int, data: memoryview) -> int:
        hangs.set()
        goes_on.wait()
        return write(file, data)

    monkeypatch.setattr(os, "write", hang)
    return hangs, goes_on


def test_serving_does_not_wait_for_a_disk_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs, goes_on = hang_disk(monkeypatch)
    monkeypatch.setattr(log_module, "QUEUED_BYTES", 1000)
    log, lost = opened(tmp_path)
    log.write(line(0))
    assert hangs.wait(timeout=30)
    for number in range(1, 100):
        log.write(line(number))
    goes_on.set()
    log.close()
    written = numbers(*files(tmp_path))
    assert written == list(range(len(written)))
    assert lost == [("full", 1)] * (100 - len(written))
    assert 1 < len(written) < 30


def test_what_was_written_makes_room_for_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "QUEUED_BYTES", 1000)
    written, write = threading.Semaphore(0), os.write

    def write_and_tell(file: int, data: memoryview) -> int:
        done = write(file, data)
        written.release()
        return done

    monkeypatch.setattr(os, "write", write_and_tell)
    log, lost = opened(tmp_path)
    for number in range(100):
        log.write(line(number))
        assert written.acquire(timeout=30)
    log.close()
    assert numbers(*files(tmp_path)) == list(range(100))
    assert not lost


def test_a_server_ends_though_its_disk_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, goes_on = hang_disk(monkeypatch)
    monkeypatch.setattr(log_module, "CLOSE_SECONDS", 0.01)
    log, _ = opened(tmp_path)
    log.write(line(0))
    log.close()
    assert "its disk hangs" in caplog.text
    goes_on.set()
    monkeypatch.setattr(log_module, "CLOSE_SECONDS", 30.0)
    log.close()
    assert numbers(*files(tmp_path)) == [0]


def test_lines_after_the_end_are_counted_as_lost(tmp_path: Path) -> None:
    log, lost = opened(tmp_path)
    log.write(line(0))
    log.close()
    log.write(line(1))
    log.close()
    assert numbers(*files(tmp_path)) == [0]
    assert lost == [("closed", 1)]


@pytest.mark.parametrize("number", [0, 1])
def test_what_was_written_is_synced_or_the_failure_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    synced: list[int] = []

    def sync(file: int) -> None:
        synced.append(os.fstat(file).st_size)
        if number:
            raise OSError(errno.EIO, "gone")

    monkeypatch.setattr(os, "fsync", sync)
    log, lost = opened(tmp_path)
    log.write(line(0))
    log.close()
    (path,) = files(tmp_path)
    assert synced == [path.stat().st_size]
    assert lost == [("sync", 0)] * number


def test_a_deleted_file_is_noticed_and_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "SYNC_SECONDS", 0.0)
    deleted = threading.Event()
    write = os.write

    def write_and_delete(file: int, data: memoryview) -> int:
        done = write(file, data)
        if not deleted.is_set():
            for path in tmp_path.glob("log/*"):
                path.unlink()
            (tmp_path / "log").rmdir()
        return done

    monkeypatch.setattr(os, "write", write_and_delete)
    lost: Lost = []

    def trouble(kind: Trouble, dropped: int) -> None:
        lost.append((kind, dropped))
        deleted.set()

    log = LineLog(tmp_path / "log", ROTATE_BYTES, trouble)
    log.write(line(0))
    assert deleted.wait(30)
    log.write(line(1))
    log.close()
    assert numbers(*files(tmp_path / "log")) == [1]
    assert lost == [("sync", 0)]


@pytest.mark.parametrize("wrong", ["file", "read-only"])
def test_a_directory_that_cannot_be_used_stops_the_server(
    tmp_path: Path, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "log"
    if wrong == "file":
        directory.touch()
    else:  # Tests may run as root, who may write everywhere.
        monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    with pytest.raises(ConfigError, match=r"experiments\.log=.*log.*configuration"):
        opened(directory)
