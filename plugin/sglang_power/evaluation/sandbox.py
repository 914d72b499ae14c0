"""Runs a program that a model wrote, in a process of its own that is limited and ends when told.

Limits are for accidents: endless loops, full memories, a program that calls the network. They are no wall
against an attacker, who could read and write what the user can: who does not trust a model runs the command
in a container.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_power.errors import HostError

CHILD = Path(__file__).with_name("sandbox_child.py")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may take.

    Args:
        seconds: by the clock.  cpu_seconds: of the processor.
        memory: bytes of address space.
        file_size: bytes of a file that it writes.
    """

    seconds: float = 10.0
    cpu_seconds: int = 10
    memory: int = 1 << 30
    file_size: int = 1 << 20


@dataclass(frozen=True, slots=True)
class Ending:
    """How a program ended.

    Args:
        passed: it ran to its end without an error.
        reason: why it did not.
        network: how the network was closed to it.
    """

    passed: bool
    reason: str
    network: str


def run(program: str, limits: Limits | None = None) -> Ending:
    """Run a program in an empty folder, without environment, standard input or network.

    Args:
        program: Python; only the standard library is there.
        limits: what it may take.

    Raises:
        HostError: the process did not come as far as the program.
    """
    limits = limits or Limits()
    numbers = map(str, (limits.cpu_seconds, limits.memory, limits.file_size))
    with tempfile.TemporaryDirectory(prefix="sglang-power-eval-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(CHILD), *numbers],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={},
            cwd=folder,
            start_new_session=True,
        )
        in_time = True
        try:
            out, err = process.communicate(program.encode("utf-8", "replace"), limits.seconds)
        except subprocess.TimeoutExpired:
            in_time = False
        finally:
            _kill(process)
        if not in_time:
            out, err = process.communicate()
    return _ending(out, err, f"stopped after {limits.seconds:g} seconds" if not in_time else "")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _ending(out: bytes, err: bytes, stopped: str) -> Ending:
    told = _lines(out)
    if not told or "network" not in told[0]:
        raise HostError(f"the sandbox did not start: {stopped or err.decode(errors='replace')[-300:]}")
    if len(told) > 1 and told[-1]["error"] is None:
        return Ending(True, "", told[0]["network"])
    ended = told[1]["error"] if len(told) > 1 else stopped or "ended before its end"
    return Ending(False, ended, told[0]["network"])


def _lines(out: bytes) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in out.decode(errors="replace").split("\n") if line.startswith("{")]
    return [line for line in lines if isinstance(line, dict)]
