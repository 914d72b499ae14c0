"""What a user has: HTTP, the stock `openai` client and the Engine, with as little help as possible.

Owns the helpers of the server tests; knows nothing of the plugin's internals. `python -m` runs
`engine_session`, since an Engine needs a process of its own.
"""

from __future__ import annotations

import functools
import http.client
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from integration_tests.server import Server, device_arguments

PROMPT = "R7+3*2-8:"
PROMPT_Q = "Q7+3*2-8:"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": PROMPT}]
"""The chat template concatenates contents, so this is the same prompt."""

EOS = 0

QUICK: dict[str, Any] = {"sampler": "power", "block_size": 16, "steps": 2}
"""A short chain."""

LONG: dict[str, Any] = {**QUICK, "steps": 400, "early_rejection": False}
"""A chain that is still running whenever a test interferes with it (with ignore_eos and 96 tokens)."""

POWER_FIELDS = frozenset(
    {
        "sampler",
        "params",
        "seed",
        "chain_version",
        "steps",
        "proposals",
        "accepted",
        "acceptance_rate",
        "decoded_tokens",
        "prefilled_tokens",
        "early_rejected",
        "saved_tokens_max",
        "wasted_tokens",
        "depth",
        "law",
        "fallback_reason",
        "children",
        "log_p",
        "log_target",
        "health",
        "hint",
        "stopped_by",
        "weight_version",
        "version",
    }
)
"""`meta_info.power`: the documented names, and no other."""

PARAM_FIELDS = frozenset(
    {
        "alpha",
        "proposal_temperature",
        "proposal_policy",
        "block_size",
        "steps",
        "cut",
        "cut_beta",
        "cut_epsilon",
        "schedule",
        "early_rejection",
        "max_steps",
        "max_total_tokens",
        "deadline_ms",
        "lookback_blocks",
        "top_p",
        "top_k",
        "min_p",
        "reward",
        "reward_weight",
        "prefetch",
        "tries",
        "method",
        "start",
        "max_new_tokens",
    }
)
"""Every parameter that decides the law or the cost is echoed after defaults."""

WAIT_S = 120.0
"""How long `eventually` waits; a bound for a hung server, never an assertion on speed."""

HTTP = httpx.Client(
    verify=False,  # the servers speak no TLS, and making its context costs 20 ms
    timeout=WAIT_S,
    follow_redirects=True,
    limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
)
"""For all threads. A connection per request: of several tokenizer workers any may take it."""

Answer = dict[str, Any]


def post(server: Server, path: str, body: Any, timeout: float = WAIT_S) -> httpx.Response:
    """POST a JSON body."""
    return HTTP.post(server.url + path, json=body, timeout=timeout)


def raw_generate(server: Server, prompt: Any = PROMPT, **body: Any) -> Any:
    """/generate, checked for HTTP 200."""
    response = post(server, "/generate", {"text": prompt, **body})
    assert response.status_code == httpx.codes.OK, response.text
    return response.json()


def generate(
    server: Server, prompt: str = PROMPT, *, max_new_tokens: int = 48, sampling: Any = None, **power: Any
) -> Any:
    """A power answer by /generate, or a list of n: `power` on top of QUICK, `sampling` on top of SGLang's."""
    params = {"max_new_tokens": max_new_tokens, "custom_params": {**QUICK, **power}, **(sampling or {})}
    return raw_generate(server, prompt, sampling_params=params)


def power_of(answer: Answer) -> dict[str, Any]:
    """`meta_info.power` of an answer."""
    report: dict[str, Any] = answer["meta_info"]["power"]
    return report


@functools.cache
def client(server: Server) -> openai.OpenAI:
    """The stock client, without retries that would hide a failure; one per server, open to the end."""
    return openai.OpenAI(base_url=server.url + "/v1", api_key="unused", max_retries=0, timeout=WAIT_S)


def reports(response: BaseModel) -> list[Any]:
    """`metadata.power` of an OpenAI response or chunk."""
    found: list[Any] = response.model_dump()["metadata"]["power"]
    return found


def sse_lines(server: Server, path: str, body: Any) -> Iterator[str]:
    """The raw lines of a stream, without the blank ones."""
    with HTTP.stream("POST", server.url + path, json=body) as response:
        assert response.status_code == httpx.codes.OK, response.read()
        for line in response.iter_lines():
            if line:
                yield line


def events(server: Server, path: str, body: Any) -> list[dict[str, Any]]:
    """The JSON payloads of a stream; it must end with [DONE]."""
    lines = [line for line in sse_lines(server, path, body) if not line.startswith(":")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def together(work: Sequence[Callable[[], Any]]) -> list[Any]:
    """Results of calls made at once, in order."""
    with ThreadPoolExecutor(len(work)) as pool:
        return [future.result() for future in [pool.submit(call) for call in work]]


@contextmanager
def running(call: Callable[[], Any]) -> Iterator[Future[Any]]:
    """A call in the background."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(call)


def leave(
    server: Server,
    path: str,
    body: dict[str, Any],
    ready: threading.Event,
    headers: dict[str, str] | None = None,
) -> None:
    """Ask, and hang up once `ready` is set, without reading an answer."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=WAIT_S)
    try:
        sent = {"Content-Type": "application/json", **(headers or {})}
        connection.request("POST", path, json.dumps(body), sent)
        assert ready.wait(WAIT_S)
    finally:
        connection.close()


def abort(server: Server, **which: Any) -> None:
    """POST /abort_request."""
    assert post(server, "/abort_request", which).status_code == httpx.codes.OK


@contextmanager
def standstill(server: Server) -> Iterator[Callable[[], None]]:
    """No request gets any further for the time of a with-block, or until what it yields is called."""

    def resume() -> None:
        assert post(server, "/continue_generation", {}).status_code == httpx.codes.OK

    assert post(server, "/pause_generation", {"mode": "in_place"}).status_code == httpx.codes.OK
    try:
        yield resume
    finally:
        resume()


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.05)


def metric(server: Server, name: str, **labels: str) -> float:
    """Sum of one metric's samples; 0 where it does not exist yet."""
    total = 0.0
    for line in HTTP.get(server.url + "/metrics").text.splitlines():
        found, _, value = line.rpartition(" ")
        series, _, rest = found.partition("{")
        if series == name and all(f'{key}="{wanted}"' in rest for key, wanted in labels.items()):
            total += float(value)
    return total


def scheduled(server: Server) -> float:
    """Requests that the scheduler has ever taken up, plain ones and children alike."""
    return metric(server, "sglang:queue_time_seconds_count")


def active(server: Server, endpoint: str = "/generate") -> float:
    """Calls of a route that are at work."""
    return metric(server, "sglang:http_requests_active", endpoint=endpoint)


def unfinished(server: Server) -> int:
    """Requests that the scheduler holds now, running or waiting."""
    loads = HTTP.get(server.url + "/v1/loads").json()["loads"]
    return sum(int(load["num_running_reqs"]) + int(load["num_waiting_reqs"]) for load in loads)


def quiet(server: Server) -> None:
    """Wait until no chain is alive: no request is held, and none arrives in several children's time."""
    seen: list[float] = []

    def settled() -> bool:
        seen.append(scheduled(server))
        time.sleep(0.15)
        return len(seen) >= 5 and len(set(seen[-5:])) == 1 and unfinished(server) == 0

    eventually(settled, "all children ended")


def engine_session(model: str, out: Path) -> None:
    """What the tests ask of an Engine, written to a JSON file."""
    import sglang

    flags = device_arguments()
    settings = {
        flag.removeprefix("--").replace("-", "_"): float(value) if value[0].isdigit() else value
        for flag, value in zip(flags[::2], flags[1::2], strict=True)
    }
    engine = sglang.Engine(
        model_path=model, max_total_tokens=20000, page_size=1, log_level="error", **settings
    )
    quick = {"max_new_tokens": 48, "custom_params": {**QUICK, "seed": 11}}
    try:
        results: dict[str, Any] = {
            "custom_params": engine.generate(PROMPT, quick),
            "sampler_key": engine.generate(PROMPT, {"sampler": "power", "max_new_tokens": 24}),
            "plain": engine.generate(PROMPT, {"max_new_tokens": 24}),
            "list": engine.generate([PROMPT, PROMPT_Q], [quick, {"max_new_tokens": 24}]),
            "n": engine.generate(PROMPT, {**quick, "n": 2}),
            "branch": engine.generate(PROMPT, {"sampler": "branch", "max_new_tokens": 48}),
            "stream": list(engine.generate(PROMPT, quick, stream=True)),
            "statistics": engine.generate(PROMPT, {"max_new_tokens": 24, "return_statistics": True}),
        }
        results["errors"] = [
            engine_error(engine, {"custom_params": {"sampler": "power", "alpha": alpha}})
            for alpha in (0.5, float("nan"), float("inf"))
        ]
        results["after_error"] = engine.generate(PROMPT, quick)
    finally:
        engine.shutdown()
    out.write_text(json.dumps(results))


def engine_error(engine: Any, sampling_params: dict[str, Any]) -> dict[str, str]:
    """The exception that a request raises."""
    try:
        engine.generate(PROMPT, sampling_params)
    except ValueError as error:
        return {"type": type(error).__name__, "message": str(error)}
    return {"type": "none", "message": ""}


if __name__ == "__main__":
    engine_session(sys.argv[1], Path(sys.argv[2]))
