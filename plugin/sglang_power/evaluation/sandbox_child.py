"""Runs a program that a model wrote: the first file of a new process, which imports nothing of this package.

Reads the program from standard input. Standard output says in one JSON line how the network is closed and,
behind it, in another one how the program ended; what the program prints goes nowhere. Before it begins, the
process gives up the network, gets limits that it cannot raise again, and, where the kernel permits it, an own
world of processes that ends with it.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Sequence
from typing import Any

CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
SET_DEATH_SIGNAL = 1

REFUSED = ("socket.", "ctypes.", "subprocess.", "os.exec", "os.posix_spawn", "os.system", "os.fork", "pty.")
"""Beginnings of events by which a program would reach the network, or get around this list."""

CLOSED = "network namespace"
HOOKED = "audit hook"


def main(arguments: Sequence[str]) -> None:
    """Run the program; arguments are CPU seconds, bytes of memory, and bytes of a file."""
    cpu, memory, size = map(int, arguments)
    told = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    program = sys.stdin.read()
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    how = CLOSED if unshared() else HOOKED
    say(told, {"network": how})
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            say(told, {"error": "ended by " + signal.Signals(os.WTERMSIG(status)).name})
        os._exit(0)
    ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, signal.SIGKILL)
    limit(cpu, memory, size)
    if how == HOOKED:
        sys.addaudithook(refuse)
    say(told, ended(program))
    os._exit(0)


def unshared() -> bool:
    """Leave the networks of the machine, and its processes; False where the kernel does not permit it.

    In a user namespace of its own, too, if it may: there root cannot raise its limits any more.
    """
    libc = ctypes.CDLL(None)
    apart = CLONE_NEWPID | CLONE_NEWNET
    return bool(libc.unshare(CLONE_NEWUSER | apart) == 0 or libc.unshare(apart) == 0)


def limit(cpu: int, memory: int, size: int) -> None:
    """Set limits that the program cannot raise."""
    for what, most in (
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, size),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(what, (most, most))


def refuse(event: str, _: tuple[Any, ...]) -> None:
    """Refuse what reaches the network."""
    if event.startswith(REFUSED):
        raise PermissionError(event + " is not allowed here")


def ended(program: str) -> dict[str, str | None]:
    """Run the program to its end, and say how that was."""
    try:
        exec(compile(program, "answer.py", "exec"), {"__name__": "__main__"})
    except BaseException as error:  # noqa: BLE001  (a program may raise anything, SystemExit too)
        return {"error": (type(error).__name__ + ": " + str(error))[:200]}
    return {"error": None}


def say(stream: int, told: dict[str, str | None]) -> None:
    """Write a line; one write, so that it is there as a whole or not at all."""
    os.write(stream, (json.dumps(told) + "\n").encode())


if __name__ == "__main__":
    main(sys.argv[1:])
