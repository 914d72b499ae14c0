"""No evaluation of ours takes an answer of SGLang's own sampler for one of the sampler that it asked for."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from sglang_power.errors import HostError

from integration_tests.benchmarks.plain_requests import throughput_beside_power
from integration_tests.evaluation import Evaluator
from integration_tests.pivot.problems import problems

PLAIN: dict[str, Any] = {"sampler": "none", "fallback_reason": "temperature=0"}
BROKEN: list[tuple[Any, str]] = [
    (None, "without sglang-power"),
    ({}, "the server ran None"),
    (PLAIN, "because of temperature=0"),
    ({"sampler": "cot"}, "the server ran 'cot'"),
]


def server(report: Any) -> httpx.MockTransport:
    """A server that answers everything with 200 and this report."""
    meta = {"completion_tokens": 1, "prompt_tokens": 1, "cached_tokens": 0}
    meta |= {} if report is None else {"power": report}
    answer = {"text": "A5.", "output_ids": [1], "meta_info": meta}
    return httpx.MockTransport(lambda _request: httpx.Response(200, text=json.dumps(answer)))


@pytest.mark.parametrize(("report", "problem"), BROKEN)
async def test_the_evaluation_does_not_count_other_samplers_answers(report: Any, problem: str) -> None:
    async with httpx.AsyncClient(base_url="http://server", transport=server(report)) as client:
        with pytest.raises(HostError, match=problem):
            await Evaluator(client).own("power", problems("R", 1, seed=1), {})


async def test_the_benchmark_notices_that_nothing_runs_beside() -> None:
    async with httpx.AsyncClient(transport=server(None)) as client:
        with pytest.raises(HostError, match="without sglang-power"):
            await throughput_beside_power(client, "http://server", 8)
        await asyncio.sleep(0)
