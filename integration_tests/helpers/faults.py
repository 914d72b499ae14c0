"""What breaks a server from outside: its processes by role, limits of one of them, endpoints that misbehave.

Owns the injections of the fault tests and what a client sees of them; knows nothing of the plugin's
internals. Processes are known by the server's pid, and signalled by theirs.
"""

from __future__ import annotations

import contextlib
import http.server
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import psutil

from integration_tests.helpers.clients import HTTP, WAIT_S, eventually
from integration_tests.server import Server

Json = dict[str, Any]


def scheduler_of(server: Server) -> int:
    """Return the pid of a server's scheduler."""
    (scheduler,) = {each["pid"] for each in _reports(server) if each["role"] == "scheduler"}
    return int(scheduler)


def tokenizers_of(server: Server, count: int) -> list[int]:
    """Return the pids of a server's tokenizer processes, once so many have answered."""
    found: set[int] = set()

    def all_told() -> bool:
        found.update(each["pid"] for each in _reports(server) if each["role"] == "tokenizer")
        return len(found) >= count

    eventually(all_told, f"{count} tokenizer processes answer")
    return sorted(found)


def detokenizer_of(server: Server) -> int:
    """Return the pid of the detokenizer of a server with one tokenizer process: its scheduler's sibling."""
    scheduler = psutil.Process(scheduler_of(server))
    parent = scheduler.parent()
    assert parent is not None
    (detokenizer,) = [
        child.pid
        for child in parent.children()
        if child.pid != scheduler.pid
        and child.status() != psutil.STATUS_ZOMBIE
        and "resource_tracker" not in " ".join(child.cmdline())
    ]
    return int(detokenizer)


def _reports(server: Server) -> list[Json]:
    reports: list[Json] = HTTP.get(server.url + "/sglang_power/status").json()["processes"]
    return reports


def is_alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended and that nobody has waited for does not."""
    with contextlib.suppress(psutil.Error):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


@contextmanager
def stopped(pids: Sequence[int]) -> Iterator[None]:
    """Let processes stand still for the time of a with-block."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@contextmanager
def limited(pid: int, limit: int, value: int) -> Iterator[None]:
    """Set a resource limit of one process for the time of a with-block.

    Args:
        pid: of it.
        limit: one of `resource.RLIMIT_*`.
        value: its soft limit meanwhile.
    """
    soft, hard = resource.prlimit(pid, limit)
    resource.prlimit(pid, limit, (value, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, limit, (soft, hard))


def descriptors(pid: int) -> int:
    """Return one more than the highest file descriptor in use."""
    return max(int(name) for name in os.listdir(f"/proc/{pid}/fd")) + 1  # noqa: PTH208  (links, not files)


@dataclass(frozen=True)
class Seen:
    """What one client saw.

    Args:
        status: of the response; 0 where the connection broke, -1 where nothing came in time.
        text: all that it sent, or the error.
    """

    status: int
    text: str

    @property
    def torn(self) -> bool:
        """Return whether the connection broke."""
        return self.status == 0


def ask(
    server: Server, path: str, body: Json, timeout: float = WAIT_S, headers: Mapping[str, str] | None = None
) -> Seen:
    """Make one request, whatever becomes of it."""
    try:
        response = HTTP.post(server.url + path, json=body, timeout=timeout, headers=headers)
    except httpx.TimeoutException as error:
        return Seen(-1, repr(error))
    except httpx.HTTPError as error:
        return Seen(0, repr(error))
    return Seen(response.status_code, response.text)


@contextmanager
def clients(calls: Sequence[Callable[[], Seen]]) -> Iterator[Callable[[], list[Seen]]]:
    """Clients at work; what it yields waits for all of them, in order."""
    with ThreadPoolExecutor(len(calls)) as pool:
        asked = [pool.submit(call) for call in calls]
        yield lambda: [each.result() for each in asked]


def at_work(server: Server) -> Json:
    """Return what the tokenizer processes that answer say of their work; of several workers, of one."""
    status = HTTP.get(server.url + "/sglang_power/status").json()
    (work,) = [process["at_work"] for process in status["processes"] if process["role"] == "tokenizer"]
    return dict(work)


IDLE = {"requests": 0, "children": 0, "waiting": 0}


def idle(server: Server) -> None:
    """Wait until nothing is left in tokenizer and scheduler, and no cached token is held."""
    eventually(lambda: at_work(server) == IDLE, "no request and no child is at work")

    def free() -> bool:
        loads = HTTP.get(server.url + "/v1/loads").json()["loads"]
        return all(load["num_running_reqs"] == load["num_waiting_reqs"] == 0 for load in loads)

    eventually(free, "the scheduler holds no request")

    def flushed() -> bool:
        if HTTP.post(server.url + "/flush_cache").status_code != httpx.codes.OK:
            return False
        return all(
            load["num_used_tokens"] == 0 for load in HTTP.get(server.url + "/v1/loads").json()["loads"]
        )

    eventually(flushed, "no cached token is held")


class _Endpoint(http.server.BaseHTTPRequestHandler):
    """A reward's endpoint, whose path says how it misbehaves."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        behaviour = self.path.strip("/")
        with contextlib.suppress(OSError):  # the client has given up
            if behaviour == "hangs":
                self.server.released.wait(WAIT_S)  # type: ignore[attr-defined]
            elif behaviour == "trickles":
                self._trickle()
            elif behaviour == "breaks":
                self.connection.close()
            else:
                self._answer(*ANSWERS[behaviour])

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _trickle(self) -> None:
        """A byte now and then: no single read takes long, all of them do."""
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        while not self.server.released.wait(0.05):  # type: ignore[attr-defined]
            self.wfile.write(b" ")
            self.wfile.flush()

    def log_message(self, *_: object) -> None: ...


ANSWERS: dict[str, tuple[int, bytes]] = {
    "well": (200, b'{"score": 0.5}'),
    "text": (200, b"<html>It works!</html>"),
    "empty": (200, b""),
    "list": (200, b"[0.5]"),
    "string": (200, b'{"score": "0.5"}'),
    "nan": (200, b'{"score": NaN}'),
    "infinite": (200, b'{"score": 1e999}'),
    "error": (500, b"oh"),
    "refuses": (404, b"no"),
}
"""Behaviour -> status and body."""

MISBEHAVIOURS = ("hangs", "trickles", "breaks", *(name for name in ANSWERS if name != "well"))


@contextmanager
def endpoint() -> Iterator[str]:
    """A reward's endpoint for the time of a with-block; yields its URL, to which a behaviour is added."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Endpoint)
    server.daemon_threads = True
    server.released = threading.Event()  # type: ignore[attr-defined]
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.released.set()  # type: ignore[attr-defined]
        server.shutdown()
        server.server_close()
        serving.join(WAIT_S)


def wait_for_end(pid: int) -> None:
    """Wait until a process has ended."""
    deadline = time.monotonic() + WAIT_S
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} goes on"
        time.sleep(0.1)
