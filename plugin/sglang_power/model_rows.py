"""The rows of a served model's own answers, through the server: what `sglang-power tune thresholds` measures.

Every prompt is answered twice, greedily and drawn at temperature 1, by a `branch` whose trigger never fires
and which returns its rows. Knows routes and reports, not SGLang.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import httpx
from tqdm import tqdm

from sglang_power.algorithms.triggers import Signals, signals_along
from sglang_power.errors import ConfigError
from sglang_power.fields import UNTEMPERED
from sglang_power.prompt_files import PromptLine
from sglang_power.types import ROW_FIELDS

Json: TypeAlias = dict[str, Any]

NEVER: Final = 1e9
"""Nats that no row has."""

GREEDY: Final[Json] = {
    "sampler": "branch",
    "trigger": "entropy",
    "threshold": NEVER,
    "policy": "tree",
    "answer": "text",
    "return_rows": True,
}
DRAWN: Final[Json] = {**GREEDY, "continuation_policy": {"sampler": "temperature", "value": 1.0}}


@dataclass(frozen=True, slots=True)
class Measured:
    """Rows of every answer: of greedy ones, and of drawn ones."""

    greedy: list[list[Signals]]
    drawn: list[list[Signals]]


def measure(
    client: httpx.Client,
    served_model: str,
    prompts: Sequence[PromptLine],
    *,
    max_tokens: int,
    concurrency: int,
) -> Measured:
    """Return the rows of both answers to every prompt, with a progress bar.

    Raises:
        ConfigError: the server refused a request, or answered by another sampler.
        httpx.HTTPError: it does not answer.
    """
    asked = [(kind, number) for number in range(len(prompts)) for kind in (GREEDY, DRAWN)]

    def rows_of(job: tuple[Json, int]) -> list[Signals]:
        kind, number = job
        values = {**kind, "seed": number}
        return answered(client, served_model, prompts[number], values, max_tokens)

    with ThreadPoolExecutor(concurrency) as pool:
        results = pool.map(rows_of, asked)
        rows = list(tqdm(results, total=len(asked), desc="answers", unit="answer", file=sys.stderr))
    return Measured(greedy=rows[::2], drawn=rows[1::2])


def answered(
    client: httpx.Client, served_model: str, prompt: PromptLine, values: Json, max_tokens: int
) -> list[Signals]:
    """Return what triggers see along one answer.

    Raises:
        ConfigError: refused, or answered by another sampler.
    """
    if prompt.messages is not None:
        body = {"model": served_model, "messages": prompt.messages, "max_tokens": max_tokens}
        response = client.post("/v1/chat/completions", json={**body, **UNTEMPERED, "custom_params": values})
    else:
        sampling = {**UNTEMPERED, "max_new_tokens": max_tokens, "custom_params": values}
        response = client.post("/generate", json={"text": prompt.text, "sampling_params": sampling})
    if response.is_error:
        raise ConfigError(f"the server answered {response.status_code}: {response.text}")
    report = _report(response.json())
    if report.get("sampler") != values["sampler"]:
        raise ConfigError(f"the server ran {report.get('sampler')!r} instead of {values['sampler']!r}")
    columns = report["paths"][0]["rows"]
    records = zip(*(columns[field] for field in ROW_FIELDS), strict=True)
    return signals_along([[float("nan") if x is None else x for x in record] for record in records])


def _report(answer: Json) -> Json:
    if "choices" in answer:
        reports = (answer.get("metadata") or {}).get("power") or [{}]
        found: Json = reports[0]
        return found
    told: Json = answer["meta_info"].get("power") or {}
    return told
