"""A proxy on the loopback that keeps what a tool sends and what it gets; knows HTTP and JSON alone."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from integration_tests.helpers.clients import HTTP
from integration_tests.server import Server

TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Exchange:
    """One request and its answer.

    Args:
        path, body: of the request.
        status, answer: of the response.
    """

    path: str
    body: dict[str, Any]
    status: int
    answer: dict[str, Any]


@dataclass(frozen=True)
class Recorder:
    """What went through.

    Args:
        url: to ask in place of the server's.
        exchanges: in the order of the answers.
    """

    url: str
    exchanges: list[Exchange] = field(default_factory=list)


@contextmanager
def recording(server: Server) -> Iterator[Recorder]:
    """Pass requests on to a server for the time of a with-block."""
    exchanges: list[Exchange] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            """Pass one request on."""
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            response = HTTP.post(server.url + self.path, json=body, timeout=TIMEOUT_S)
            exchanges.append(Exchange(self.path, body, response.status_code, response.json()))
            self.send_response(response.status_code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(response.content)))
            self.end_headers()
            self.wfile.write(response.content)

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        try:
            yield Recorder(f"http://127.0.0.1:{proxy.server_address[1]}", exchanges)
        finally:
            proxy.shutdown()
            thread.join()
