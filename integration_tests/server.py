"""Starts and stops the real, unmodified SGLang server on this machine's loopback.

Without a GPU the out-of-tree platform of `torch_cpu` serves on the CPU; with one, the same calls use it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import httpx
import torch

PIVOT_MODEL = Path(__file__).parent / "pivot" / "model"
PROSE_MODEL = Path(__file__).parent / "prose" / "model"
ARITHMETIC_MODEL = Path(__file__).parent / "arithmetic" / "model"

START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 30.0

KEEP_ALIVE_S = 60
"""SGLang closes idle connections after 5 s, just when httpx's pool gives them up: a request sent into that
moment is lost (httpx.ReadError). The server has to be the more patient of the two."""

WORKER_HEALTH_S = 120
"""Uvicorn kills a tokenizer worker that answers no ping for 10 s, which importing takes on a busy machine."""


SET_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""


@dataclass(frozen=True)
class ServerSpec:
    """One server configuration.

    Args:
        model: folder of the model.
        name: of the log file, and the served model's name.
        arguments: further command-line arguments of SGLang.
        environment: further environment variables.
    """

    model: Path
    name: str
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    pid: int
    log: Path
    name: str

    def log_text(self) -> str:
        """Everything that it printed so far."""
        return self.log.read_text(errors="replace")


def device_arguments() -> list[str]:
    """A GPU where there is one; otherwise the CPU, with sizes for a small machine.

    SGLang refuses to start when the free memory shrinks by more than the fraction while it loads, which
    servers side by side make happen; the pool itself is bounded by --max-total-tokens.
    """
    if torch.cuda.is_available():
        return ["--mem-fraction-static", "0.3"]
    return ["--device", "cpu", "--dtype", "float32", "--mem-fraction-static", "0.5"]


def free_port() -> int:
    """A port of the loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command_line(spec: ServerSpec, port: int) -> list[str]:
    """The command that serves `spec`."""
    return [
        *[sys.executable, "-m", "sglang.launch_server"],
        *["--model-path", str(spec.model), "--served-model-name", spec.name],
        *["--host", "127.0.0.1", "--port", str(port)],
        "--sleep-on-idle",  # several servers share a small machine
        *device_arguments(),
        *(["--max-total-tokens", "40000"] if "--max-total-tokens" not in spec.arguments else []),
        *spec.arguments,
    ]


class Process(Protocol):
    """A server's first process."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...


Start = Callable[[Sequence[str], Path, Mapping[str, str]], Process]
"""Starts a command: with a file for what it prints, and variables on top of this process's own."""


def die_with_parent(signum: int = signal.SIGTERM) -> None:
    """In a new process: be signalled when whoever started it ends, however that was."""
    ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, signum)


def execute(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Process:
    """Start a command as a process of its own, and the leader of its group."""
    with log.open("w") as sink:
        return subprocess.Popen(
            command,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


@contextmanager
def running(spec: ServerSpec, log_dir: Path, start: Start = execute) -> Iterator[Server]:
    """A server for the time of a with-block; stopped by its pid, with everything that it started."""
    port = free_port()
    environment = {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "SGLANG_TIMEOUT_KEEP_ALIVE": str(KEEP_ALIVE_S),
        "SGLANG_UVICORN_WORKER_HEALTHCHECK_TIMEOUT": str(WORKER_HEALTH_S),
        **spec.environment,
    }
    server = Server(f"http://127.0.0.1:{port}", 0, log_dir / f"{spec.name}.log", spec.name)
    with started(server, command_line(spec, port), "/health_generate", environment, start) as ready:
        yield ready


@contextmanager
def started(
    server: Server,
    command: Sequence[str],
    health: str,
    environment: Mapping[str, str],
    start: Start = execute,
) -> Iterator[Server]:
    """Any HTTP server for the time of a with-block.

    Args:
        server: where it listens and logs; its pid is not known yet.
        command: what starts it.
        health: the path that answers 200 once it serves.
        environment: variables on top of this process's own.
        start: how the command becomes a process.
    """
    process = start(command, server.log, environment)
    try:
        _wait_until_ready(server, process, health)
        yield replace(server, pid=process.pid)
    finally:
        _stop(process)


def _wait_until_ready(server: Server, process: Process, health: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended while starting:\n{server.log_text()[-4000:]}")
        with suppress(httpx.HTTPError):
            answer = httpx.get(server.url + health, timeout=10, verify=False)
            if answer.status_code == httpx.codes.OK:
                return
        time.sleep(0.5)
    raise RuntimeError(f"the server did not start in {START_TIMEOUT_S} s:\n{server.log_text()[-4000:]}")


def _stop(process: Process) -> None:
    """End a server: politely, as an operator would, then for certain, with everything that it started."""
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.kill(process.pid, signal.SIGTERM)
        process.wait(timeout=STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=STOP_TIMEOUT_S)
