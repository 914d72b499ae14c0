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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import torch

PIVOT_MODEL = Path(__file__).parent / "pivot" / "model"
PROSE_MODEL = Path(__file__).parent / "prose" / "model"

START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 60.0

KEEP_ALIVE_S = 60
"""SGLang closes idle connections after 5 s, just when httpx's pool gives them up: a request sent into that
moment is lost (httpx.ReadError). The server has to be the more patient of the two."""

WORKER_HEALTH_S = 120
"""Uvicorn kills a tokenizer worker that answers no ping for 10 s, which importing takes on a busy machine."""


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


@contextmanager
def running(spec: ServerSpec, log_dir: Path) -> Iterator[Server]:
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
    with started(server, command_line(spec, port), "/health_generate", environment) as ready:
        yield ready


@contextmanager
def started(
    server: Server, command: Sequence[str], health: str, environment: Mapping[str, str]
) -> Iterator[Server]:
    """Any HTTP server for the time of a with-block.

    Args:
        server: where it listens and logs; its pid is not known yet.
        command: what starts it.
        health: the path that answers 200 once it serves.
        environment: variables on top of this process's own.
    """
    with server.log.open("w") as sink:
        process = subprocess.Popen(
            command,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    try:
        _wait_until_ready(server, process, health)
        yield replace(server, pid=process.pid)
    finally:
        _stop(process)


def _die_with_parent() -> None:
    """In the server process: end when whoever started it is killed (Linux, prctl PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _wait_until_ready(server: Server, process: subprocess.Popen[bytes], health: str) -> None:
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


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server's process group: politely, then for certain."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, signum)
        except ProcessLookupError:
            return
        try:
            process.wait(timeout=STOP_TIMEOUT_S if signum == signal.SIGTERM else 10)
        except subprocess.TimeoutExpired:
            continue
        if signum == signal.SIGTERM and _group_alive(process.pid):
            continue
        return


def _group_alive(pgid: int) -> bool:
    try:
        os.killpg(pgid, 0)
    except ProcessLookupError:
        return False
    return True
