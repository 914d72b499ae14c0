"""Thousands of bodies on every route that generates: answers or 4xx, whole streams, a server that is idle.

`make fuzz`. Bodies are drawn by hypothesis from the project's own models, and by schemathesis from the
server's own schema with a sampler put into each. Eight clients at once, so that answers meet in batches.
Error rate 0.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import strategies as st

from integration_tests.fuzz_tests.conftest import BODIES
from integration_tests.helpers.bodies import (
    GENERATE,
    MARK,
    OLLAMA,
    OLLAMA_CHAT,
    ROUTES,
    bodies,
    drawn,
    spoilt,
    values,
)
from integration_tests.helpers.clients import HTTP, generate, power_of
from integration_tests.helpers.faults import idle
from integration_tests.server import Server

pytestmark = [pytest.mark.server, pytest.mark.timeout(7200)]

CLIENTS = 8
HANGS_S = 120.0
SHOWN = 10
SEED = 2026

Json = dict[str, Any]


@dataclass(frozen=True)
class Sent:
    """One body and what came of it: status 0 for a broken connection, -1 for none in time."""

    path: str
    body: Any
    status: int
    text: str

    @property
    def wrong(self) -> str | None:
        """What is wrong with it."""
        if self.status in (0, -1) or self.status >= httpx.codes.INTERNAL_SERVER_ERROR:
            return f"status {self.status}"
        if self.status == httpx.codes.OK and self._is_stream and not self._is_whole:
            return "a torn stream"
        if self.status == httpx.codes.OK and '"status_code": 5' in self.text:
            return "a server error inside a stream"
        return None

    @property
    def _is_stream(self) -> bool:
        return self.text.startswith(("data:", "event:", ":", '{"model"')) and "\n" in self.text.strip()

    @property
    def _is_whole(self) -> bool:
        text = self.text.rstrip()
        if self.path in (OLLAMA, OLLAMA_CHAT):
            last = json.loads(text.splitlines()[-1])
            return bool(last.get("done")) or "error" in last
        ends = ("data: [DONE]", '"type":"message_stop"}', '"type": "message_stop"}')
        closed = re.search(r"event: (response\.(completed|failed|incomplete)|error)\b", text)
        return text.endswith(ends) or closed is not None


async def sent(client: httpx.AsyncClient, path: str, body: Any) -> Sent:
    """Send one body."""
    try:
        content = json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        response = await client.post(path, content=content, headers=headers)
    except httpx.TimeoutException as error:
        return Sent(path, body, -1, repr(error))
    except httpx.HTTPError as error:
        return Sent(path, body, 0, repr(error))
    return Sent(path, body, response.status_code, response.text)


async def all_sent(url: str, asked: list[tuple[str, Any]]) -> list[Sent]:
    """Send bodies from several clients; once the server is gone, no more of them."""
    waiting, found = list(reversed(asked)), list[Sent]()
    # Not kept: a connection that the server closes while the next body is on its way would look like a fault.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=HANGS_S, limits=limits) as client:

        async def work() -> None:
            while waiting and sum(each.status == 0 for each in found) < 3 * CLIENTS:
                found.append(await sent(client, *waiting.pop()))

        await asyncio.gather(*[work() for _ in range(CLIENTS)])
    return found


def check(server: Server, kind: str, asked: list[tuple[str, Any]], record: dict[str, Any]) -> list[Sent]:
    """Send them; show what is wrong with the first ones of each sort."""
    found = asyncio.run(all_sent(server.url, asked))
    counted = Counter(f"{kind} {each.path} {each.status}" for each in found)
    record["sent"].update(counted)
    print(*(f"{name}: {count}" for name, count in sorted(counted.items())), sep="\n")
    wrong = [each for each in found if each.wrong]
    shown = {(each.path, each.wrong, re.sub(r"\d+", "0", each.text)[:120]): each for each in wrong}
    lines = [
        f"{each.wrong} of {each.path}: {json.dumps(each.body)[:1500]}\n  -> {each.text[:600]}"
        for each in list(shown.values())[:SHOWN]
    ]
    assert not wrong, f"{len(wrong)} of {len(found)}, in {len(shown)} sorts:\n" + "\n".join(lines)
    assert len(found) == len(asked)
    return found


def share(part: float, of: int = len(ROUTES)) -> int:
    """How many bodies of a kind each route gets."""
    return max(1, round(BODIES * part / of))


def test_right_bodies_are_answered(fuzz_server: Server, record: dict[str, Any]) -> None:
    """Most of them: what is right alone may contradict something else."""
    asked = [
        (path, body) for i, path in enumerate(ROUTES) for body in drawn(bodies(path), share(0.45), SEED + i)
    ]
    found = check(fuzz_server, "right", asked, record)
    answered = sum(each.status == httpx.codes.OK for each in found)
    assert answered > 0.5 * len(found), f"{answered} of {len(found)}: these bodies are not valid-heavy"


def test_spoilt_bodies_are_answered_or_refused(fuzz_server: Server, record: dict[str, Any]) -> None:
    """A sampler is named in each, so that no body is SGLang's alone."""
    asked = [
        (path, _with_sampler(path, body))
        for i, path in enumerate(ROUTES)
        for body in drawn(spoilt(bodies(path)), share(0.3), SEED + 100 + i)
    ]
    found = check(fuzz_server, "spoilt", asked, record)
    assert sum(400 <= each.status < 500 for each in found) > 0.2 * len(found)


def test_bodies_of_the_servers_own_schema(fuzz_server: Server, record: dict[str, Any]) -> None:
    document = HTTP.get(fuzz_server.url + "/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    asked = []
    for i, path in enumerate(ROUTES):
        for j, mode in enumerate(
            (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
        ):
            strategy = schema[path]["POST"].as_strategy(generation_mode=mode).map(lambda case: case.body)
            made = drawn(strategy, share(0.1), SEED + 200 + 10 * i + j)
            asked += [(path, _with_sampler(path, body)) for body in made if _is_json(body)]
    check(fuzz_server, "schema", asked, record)


def test_routes_of_the_plugin(fuzz_server: Server, record: dict[str, Any]) -> None:
    """Feedback without its key, with wrong bodies; the status with anything behind it."""
    made = drawn(values(), share(0.05, 1), SEED + 300)
    check(fuzz_server, "feedback", [("/sglang_power/feedback", body) for body in made], record)
    for query in drawn(
        st.text(st.characters(codec="ascii", exclude_characters="#?"), max_size=20), 20, SEED + 301
    ):
        assert (
            HTTP.get(fuzz_server.url + "/sglang_power/status", params={"q": query}).status_code
            == httpx.codes.OK
        )


def test_the_server_is_whole_and_idle(fuzz_server: Server, events: Path) -> None:
    """After all of that: nothing at work, nothing cached that somebody holds, no traceback in its log.

    And no string of a request became part of a path, a program or an address.
    """
    idle(fuzz_server)
    assert power_of(generate(fuzz_server))["sampler"] == "power"
    tracebacks = re.findall(r"Traceback.*?\n(\w[^\n]*)\n", fuzz_server.log_text(), flags=re.DOTALL)
    assert Counter(tracebacks) == {}
    assert not events.exists(), events.read_text()[:3000]


def test_control_the_watcher_sees_a_file_of_a_request(
    fuzz_server: Server, events: Path, tmp_path: Path
) -> None:
    """SGLang's own profiler writes where a request says: a path with the mark in it is seen."""
    folder = tmp_path / MARK
    HTTP.post(fuzz_server.url + "/start_profile", json={"output_dir": str(folder), "activities": ["CPU"]})
    HTTP.post(fuzz_server.url + "/stop_profile")
    assert MARK in events.read_text()


def _is_json(body: Any) -> bool:
    try:
        json.dumps(body)
    except (TypeError, ValueError):
        return False
    return True


def _with_sampler(path: str, body: Any) -> Any:
    """A body that the plugin is asked by, whatever else it says; what is no object all routes refuse."""
    if not isinstance(body, dict):
        return body
    named = {"sampler": "best_of", "samples": 2, "strict": True}
    if path in (OLLAMA, OLLAMA_CHAT):
        options = body.get("options")
        said = options if isinstance(options, dict) else {}
        return {**body, "options": {**named, "num_predict": 4, **said}}
    few: Json = {}
    if path == GENERATE and isinstance(body.get("sampling_params"), dict | None):
        few = {"sampling_params": {"max_new_tokens": 4, **(body.get("sampling_params") or {})}}
    return {**body, **few, "sglang_power": body.get("sglang_power") or named}
