"""How `sglang-power check` reaches every tokenizer worker of a server. Knows the status route, not SGLang.

A new connection is taken by any of the workers, and nobody can choose which; of idle ones the same may take
many in a row. So the status is asked over new connections, several at once, until each has answered.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from sglang_power.gateways import json_object
from sglang_power.routes import STATUS_ROUTE

AT_ONCE = 8
PAUSE_S = 0.05


def tokenizers_of(status: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the reports of tokenizer processes in a status."""
    return [process for process in status["processes"] if process["role"] == "tokenizer"]


def with_every_worker(
    client: httpx.Client, server: str, status: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """Return a server's status with a report of each of its tokenizer workers.

    Args:
        client: opens a connection for each request.
        server: its base URL.
        status: what the worker said that was asked first.
        seconds: how long the others are asked for; who has not answered by then is reported as missing.
    """
    wanted = status.get("tokenizer_workers", 1)
    reports = {process["pid"]: process for process in tokenizers_of(status)}
    deadline = time.monotonic() + seconds
    without_plugin = False
    while len(reports) < wanted and time.monotonic() < deadline and not without_plugin:
        for answer in _asked(client, server):
            without_plugin |= answer.status_code == httpx.codes.NOT_FOUND
            for process in tokenizers_of({"processes": [], **json_object(answer.text)}):
                reports[process["pid"]] = process
        time.sleep(PAUSE_S)
    why = "answers without the plugin" if without_plugin else f"no answer in {seconds:g} s"
    missing = [_missing(why)] * (wanted - len(reports))
    others = [process for process in status["processes"] if process["role"] != "tokenizer"]
    each = [reports[pid] for pid in sorted(reports)]
    return {**status, "processes": [*each, *missing, *others]}


def _asked(client: httpx.Client, server: str) -> Iterator[httpx.Response]:
    """Yield the answers to some requests that are under way at once; a worker that hangs gives none."""

    def ask(_: int) -> httpx.Response | None:
        try:
            return client.get(server + STATUS_ROUTE, headers={"Connection": "close"})
        except httpx.HTTPError:
            return None

    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from (answer for answer in pool.map(ask, range(AT_ONCE)) if answer is not None)


def _missing(why: str) -> dict[str, Any]:
    """Return the report of a worker that gave none."""
    return {"role": "tokenizer", "pid": None, "version": None, "hooks": {f"a worker: {why}": "missing"}}
