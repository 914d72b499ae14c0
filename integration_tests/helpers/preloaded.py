"""Servers of a test session, forked from one process that has SGLang's modules imported.

Importing them takes longer than all else in a server's start, and 0.7 GB in each of its three processes.
`multiprocessing`'s fork server does it once; code, arguments and environment are those of the command line.
The Engine's tests, those of SIGTERM, the router's, the demo and the benchmarks start SGLang as users do.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from integration_tests.server import Process, die_with_parent, execute

NURSERY = "integration_tests.helpers.nursery"


class PreloadedProcess:
    """A process of `multiprocessing` with those methods of `subprocess.Popen` that a server's end needs."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        assert process.pid is not None
        self.pid: int = process.pid

    def poll(self) -> int | None:
        """Its exit status, None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, once it has ended.

        Raises:
            subprocess.TimeoutExpired: after `timeout` seconds.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a preloaded process", timeout or 0.0)
        return self._process.exitcode


def fork(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Process:
    """Run `python -m module arguments...` in a process in which SGLang's modules are imported.

    Args:
        command: this interpreter, "-m", the module, its arguments.
        log: takes its standard output and error.
        environment: variables on top of this process's own.
    """
    interpreter, option, module, *arguments = command
    assert (interpreter, option) == (sys.executable, "-m")
    if sys.version_info >= (3, 14):  # its fork servers want a key, for which there is no public way
        return execute(command, log, environment)
    servers = multiprocessing.get_context("forkserver")
    servers.set_forkserver_preload([NURSERY])
    whole = {**os.environ, **environment}
    process = servers.Process(target=_run_module, args=(module, arguments, log, whole))
    process.start()
    return PreloadedProcess(process)


def _run_module(module: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
    """In the new process: become what the command line would have started."""
    assert NURSERY in sys.modules, "the fork server could not import SGLang's modules"
    from integration_tests.helpers import nursery

    os.setsid()
    die_with_parent()
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.close(sink)
    nursery.set_environment(environment)
    nursery.start_nursery()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
