"""Rows of serve.json for tests, and a scripted server that the benchmark can measure."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from sglang_power.serve_benchmark.connection import Reply
from sglang_power.serve_benchmark.record import Effort, Row
from sglang_power.serve_benchmark.workloads import Task, Workload

KNOWN = ("power", "vote")
"""Samplers of the scripted server."""

STATUS = {
    "sglang": "0.5.23",
    "served_model": "m",
    "presets": {"fast-exact": {"sampler": "power", "steps": 3}},
    "processes": [{"version": "0.1.0"}],
    "refused": [],
}

LENGTH = 4
"""Tokens of every answer of the scripted server."""


def workload(count: int = 6, **settings: Any) -> Workload:
    """Prompts of which the scripted server solves every other one."""
    tasks = [Task(f"{number}:", "1") for number in range(count)]
    return Workload("W", tasks, 16, r"A(\d)", **settings)


def row(**changes: Any) -> Row:
    """One row; `load` and `sampler` are what most tests change."""
    values: dict[str, Any] = {
        "model": "m",
        "workload": "R",
        "sampler": "plain",
        "params": {"temperature": 1.0, "max_new_tokens": 96},
        "concurrency": 1,
        "decoded_per_returned": 1.0,
        "prefilled_per_returned": 0.5,
        "depth_per_returned": 1.0,
        "wall_vs_plain": 1.0,
        "answers_per_minute": 600.0,
        "p50_s": 0.1,
        "p95_s": 0.2,
        "p99_s": 0.3,
        "accuracy": 0.5,
        "ci95": (0.25, 0.75),
        "answers": 12,
        "returned_per_answer": 20.0,
        "extend_passes_per_answer": 1.0,
        "decode_passes_per_answer": 20.0,
        "arrivals_per_minute": None,
        "effort": Effort(answers=12, seconds=40.0, prompts="abc"),
    }
    return Row.model_validate(values | changes)


class ScriptedServer:
    """Answers what the benchmark asks, and remembers it."""

    def __init__(self, fails: Callable[[dict[str, Any]], bool] = lambda _: False) -> None:
        self.asked: list[dict[str, Any]] = []
        self.flushed = 0
        self._fails = fails

    def samplers(self) -> list[str]:
        """Return who was asked for the answers, one after the other."""
        customs = map(custom_of, self.asked)
        return [str(custom.get("sampler", custom.get("preset"))) for custom in customs]

    async def get(self, path: str) -> Reply:
        """Say how many passes there were."""
        assert path == "/metrics"
        return Reply(200, metrics(extend=len(self.asked), decode=3 * len(self.asked)))

    async def post(self, path: str, body: Any = None) -> Reply:
        """Answer one request."""
        if path == "/flush_cache":
            self.flushed += 1
            return Reply(200, "")
        if path == "/detokenize":
            return replied({"text": "A1."})
        assert path == "/generate", path
        return self.generate(body)

    def generate(self, body: dict[str, Any]) -> Reply:
        """Answer one prompt."""
        self.asked.append(body)
        custom = custom_of(body)
        if self._fails(body):
            return replied({"error": {"message": "broken"}}, 500)
        if unknown := unknown_of(custom):
            message = f"{unknown}: unknown. Known: others"
            return replied({"error": {"message": message}}, 400)
        number = int(body["text"].rstrip(":")) if "text" in body else 1
        report = None if custom.get("sampler") == "none" else report_of(custom)
        return replied(answer(number, report))


def replied(document: Any, status: int = 200) -> Reply:
    """Return a JSON response."""
    return Reply(status, json.dumps(document))


def custom_of(body: dict[str, Any]) -> dict[str, Any]:
    """Return what a body says to the plugin."""
    custom: dict[str, Any] = body["sampling_params"].get("custom_params", {})
    return custom


def unknown_of(custom: dict[str, Any]) -> str | None:
    """Return what the scripted server does not know of a request."""
    if "preset" in custom:
        return None if custom["preset"] in STATUS["presets"] else "preset"
    if custom["sampler"] not in (*KNOWN, "none"):
        return f"sampler={custom['sampler']!r}"
    return next((name for name in ("prefetch", "stopping") if name in custom), None)


def report_of(custom: dict[str, Any]) -> dict[str, Any]:
    """Return `meta_info.power`."""
    sampler = custom.get("sampler", "power")
    return {"sampler": sampler, "decoded_tokens": 40, "prefilled_tokens": 8, "depth": 20}


def answer(number: int, report: dict[str, Any] | None) -> dict[str, Any]:
    """Return an answer of LENGTH tokens, which is right where the number is odd."""
    meta: dict[str, Any] = {"prompt_tokens": 3, "cached_tokens": 1, "completion_tokens": LENGTH}
    meta |= {"finish_reason": {"type": "stop"}, "output_token_logprobs": [[-0.5, 7, None]] * LENGTH}
    return {
        "text": f"A{number % 2}.",
        "output_ids": [7] * LENGTH,
        "prompt_token_ids": [1, 2, 3],
        "meta_info": meta if report is None else {**meta, "power": report},
    }


def metrics(*, extend: int, decode: int, ranks: Sequence[int] = (0,)) -> str:
    """Return SGLang's count of forward passes, as Prometheus writes it."""
    lines = ["# TYPE sglang:cuda_graph_passes_total counter", "# TYPE sglang:gen_throughput gauge"]
    for rank in ranks:
        for mode, count in (("prefill_none", extend), ("decode_none", decode), ("decode_cuda_graph", 0)):
            lines.append(f'sglang:cuda_graph_passes_total{{mode="{mode}",tp_rank="{rank}"}} {count}.0')
    return "\n".join([*lines, "sglang:gen_throughput 5.0", ""])
