"""What the fork server of `preloaded` imports: SGLang's modules, and how its processes start others.

SGLang starts its processes with `spawn`. In a process that imported this module, `spawn` has the meaning of
`forkserver`, whose processes are made from the state before any plugin was loaded; the environment goes with
them as it does with `spawn`.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import socket
import sys
from collections.abc import Mapping
from multiprocessing import connection, context, forkserver, spawn
from pathlib import Path
from typing import Any

from integration_tests.server import die_with_parent

MODULES = (
    "sglang.srt.entrypoints.http_server",
    "sglang.srt.managers.scheduler",
    "sglang.srt.managers.detokenizer_manager",
    "sglang.srt.models.registry",
)


def set_environment(environment: Mapping[str, str]) -> None:
    """Give this process another environment, PYTHONPATH included."""
    os.environ.clear()
    os.environ.update(environment)
    folders = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [folder for folder in folders if folder and folder not in sys.path]
    _read_again()


def _read_again() -> None:
    """Set what SGLang reads from the environment when its scheduler's module is imported."""
    from sglang.srt.environ import envs
    from sglang.srt.managers import scheduler

    for name in ("TEST_RETRACT", "TEST_RETRACT_INTERVAL"):
        setattr(scheduler, name, getattr(envs, f"SGLANG_{name}").get())


def start_nursery() -> None:
    """Fork a fork server off this process as it is now; what it starts from here on comes from there."""
    server = os.getpid()
    listener = socket.socket(socket.AF_UNIX)
    address = connection.arbitrary_address("AF_UNIX")  # type: ignore[attr-defined]
    listener.bind(address)
    listener.listen()
    alive_read, alive_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(alive_write)
        die_with_parent(signal.SIGKILL)
        # A scheduler that fails sends SIGQUIT to its parent, and means the server.
        signal.signal(signal.SIGQUIT, lambda *_: os.kill(server, signal.SIGQUIT))
        try:
            forkserver.main(listener.detach(), alive_read, [])
        finally:
            os._exit(0)
    listener.close()
    os.close(alive_read)
    started: Any = forkserver._forkserver
    started._forkserver_address = address
    started._forkserver_alive_fd = alive_write
    started._forkserver_pid = pid


def _get_preparation_data(name: str) -> dict[str, Any]:
    return {**_standard_preparation_data(name), "environment": dict(os.environ)}


def _prepare(data: Mapping[str, Any]) -> None:
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    if "environment" in data:
        set_environment(data["environment"])
    _standard_prepare(data)


die_with_parent(signal.SIGKILL)  # the servers, which have it for a parent, end with it
os.environ.update({"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})  # read by what is imported here
_contexts: Any = context._concrete_contexts  # type: ignore[attr-defined]
_contexts["spawn"] = _contexts["forkserver"]
_standard_preparation_data, _standard_prepare = spawn.get_preparation_data, spawn.prepare
spawn.get_preparation_data, spawn.prepare = _get_preparation_data, _prepare
for _module in MODULES:
    importlib.import_module(_module)
assert "prometheus_client" not in sys.modules, "it has to see its server's environment when it is imported"
assert len(list(Path("/proc/self/task").iterdir())) == 1, "a process with threads cannot be forked"
gc.collect()
gc.freeze()  # collections in the servers leave these pages shared
