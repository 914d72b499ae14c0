"""A server on the loopback that serves `power` on an exact model: the running chain behind real HTTP."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from exact import AMPLE
from sglang_power.engines.tabular import TabularEngine, TabularModel
from sglang_power.request import PowerRequest, parse_request
from sglang_power.rng import Key
from sglang_power.routes import STATUS_ROUTE
from sglang_power.samplers.chain import Chain

Json = dict[str, Any]

STATUS: Json = {
    "sglang": "0.5.23",
    "served_model": "m",
    "processes": [{"version": "0.1.0", "hooks": {}}],
    "refused": [],
}

Answer = tuple[int, Json]
"""HTTP status and body."""

Script = Callable[[str, Json], Answer]
"""A path and a body -> what is answered."""


def power_on(model: TabularModel) -> Script:
    """What a server of this model answers, whatever the prompt."""

    def answer(path: str, body: Json) -> Answer:
        if path == STATUS_ROUTE:
            return 200, STATUS
        if path == "/v1/tokenize":
            return 200, {"tokens": [len(body["messages"])]}
        assert path == "/generate"
        custom = dict(body["sampling_params"]["custom_params"])
        assert custom.pop("strict") is True
        request = parse_request(custom)
        assert isinstance(request, PowerRequest)
        config = request.mh_config(body["sampling_params"]["max_new_tokens"])
        draft = None if request.initial_ids is None else tuple(request.initial_ids)
        result = asyncio.run(Chain(TabularEngine(model), config, Key(request.seed or 0), AMPLE).run(draft))
        report = {
            "sampler": "power",
            "steps": len(result.infos),
            "accepted": sum(info.accepted for info in result.infos),
            "decoded_tokens": result.usage.decoded,
            "log_p": float(result.state.tokens.log_p.sum()),
            "stopped_by": result.stopped_by,
        }
        return 200, {"output_ids": list(result.state.tokens.ids), "meta_info": {"power": report}}

    return answer


@contextmanager
def serving(script: Script) -> Iterator[tuple[str, list[tuple[str, Json]]]]:
    """A server for the time of a with-block: its URL, and what it has been asked."""
    asked: list[tuple[str, Json]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet: the second one would wait for an acknowledgement

        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            asked.append((self.path, body))
            status, told = script(self.path, body)
            raw = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
