"""The log of experiments in processes that are killed, forked or starved of disk."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import ab_log_child
from ab_log_child import files, numbers


def child(what: str, directory: Path) -> subprocess.Popen[str]:
    command = [sys.executable, ab_log_child.__file__, what, str(directory)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def told_by(what: str, directory: Path) -> str:
    process = child(what, directory)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    return output.strip()


def test_a_disk_that_is_full_for_a_while_costs_only_the_lines_of_that_while(tmp_path: Path) -> None:
    assert told_by("fill_the_disk", tmp_path) == "write write"
    assert numbers(*files(tmp_path)) == [0, 3]


def lines_lost(told: list[tuple[int, float]], written: list[int], until: float) -> list[int]:
    """Lines that were handed over before a moment and are not in the file."""
    return sorted({number for number, at in told if at <= until} - set(written))


def test_kill_9_loses_at_most_the_last_second_and_one_torn_line(tmp_path: Path) -> None:
    process = child("keep_writing", tmp_path)
    assert process.stdout is not None
    told: list[tuple[int, float]] = []
    for answer in process.stdout:
        number, at = answer.split()
        told.append((int(number), float(at)))
        if told[-1][0] == 9000:
            process.send_signal(signal.SIGKILL)
            break
    killed = told[-1][1]
    process.communicate()
    (path,) = files(tmp_path)
    *whole, torn = path.read_bytes().split(b"\n")
    written = [json.loads(text)["phase"] for text in whole]
    assert written == list(range(len(written)))
    assert torn == b"" or len(torn) < len(whole[0]) + 10
    assert killed - told[0][1] > 1.0, "too short a run to show anything"
    assert not lines_lost(told, written, killed - 1.0)
    assert lines_lost(told, written[:1000], killed - 1.0), "a control: a file that ends early is seen"


def test_a_forked_process_writes_a_file_of_its_own(tmp_path: Path) -> None:
    assert told_by("fork", tmp_path) == "0"
    assert sorted(numbers(path) for path in tmp_path.iterdir()) == [[0, 2], [1]]


def test_a_process_that_forgets_to_close_loses_nothing(tmp_path: Path) -> None:
    told_by("forget_to_close", tmp_path)
    assert numbers(*files(tmp_path)) == list(range(1000))
