"""What the end-to-end tests of experiments run and read: their files, graded traffic, lines by process.

Family R of the pivot model is graded by its clients, as users would: one problem is one unit.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import httpx

from integration_tests.helpers.clients import HTTP, PROMPT, WAIT_S, eventually
from integration_tests.helpers.trials import (
    FEEDBACK_KEY,
    GONE,
    PLAIN,
    POWER,
    WORKERS,
    Ground,
    ask,
    exposure_of,
)
from integration_tests.pivot.problems import Problem, is_correct
from integration_tests.server import Server

Json: TypeAlias = dict[str, Any]

OPERATIONS, UNITS = 6, 180
HORIZON = 48
GRADED: Json = {
    "arms": [
        {**PLAIN, "weight": 2500},
        {
            "name": "best_of",
            "sampler": {"sampler": "best_of", "samples": 36},
            "weight": 3750,
            "control": "compute_matched",
        },
        {
            "name": "power",
            "sampler": {
                **{"sampler": "power", "alpha": 4.0, "proposal_temperature": 1.0},
                **{"block_size": 2, "lookback_blocks": 4, "steps": 12, "cut": "entropy", "cut_beta": 1.0},
            },
            "weight": 3750,
        },
    ],
    "metrics": {
        "correct": {"source": "feedback", "low": 0.0, "high": 1.0, "absent": 0.0},
        "failed": {"source": "outcome", "outcomes": ["error", "fallback", "lost"]},
    },
    "primary": {"metric": "correct", "min_effect": 0.05},
    "minimum_run": {"days": 0.0, "units": UNITS},
}
"""One problem per unit. The samples of best_of decode somewhat more than a chain does."""

CHAIN: Json = {"sampler": "power", "block_size": 4, "steps": 1}
BROKEN: Json = {"name": "broken", "sampler": {**CHAIN, "reward": GONE}, "weight": 5000}
"""Its reward's endpoint does not exist, which shows only when it is called."""

WINDOW_S, WASHOUT_S = 3.0, 1.0
SHADOW_BUDGET = 40
SHADOWED: Json = {
    "arms": [PLAIN, POWER, {"name": "deep", "sampler": CHAIN, "weight": 0, "shadow": True}],
    "shadow": {"tokens_per_hour": SHADOW_BUDGET},
}
EXPERIMENTS: dict[str, Json] = {
    "graded": GRADED,
    "shadowed": SHADOWED,
    "fragile": {"arms": [PLAIN, BROKEN]},
    "strict": {"arms": [PLAIN, BROKEN], "on_error": "error"},
    "tested": {"qa": {"units": ["a tester"]}},
    "windows": {
        "kind": "switchback",
        "unit": None,
        "eligibility": {"endpoints": ["completions"]},
        "switchback": {"pool": "here", "window_s": WINDOW_S, "washout_s": WASHOUT_S},
    },
}


def completed(ground: Ground, name: str, count: int) -> dict[str, Json]:
    """Exposure -> completion line, once there are so many."""
    eventually(lambda: len(ground.lines("completion", name)) >= count, f"{count} completions of {name}")
    return {line["exposure_id"]: line for line in ground.lines("completion", name)}


def whole_lines(ground: Ground, kind: str) -> list[Json]:
    """Lines of a kind that name no experiment."""
    texts = [text for file in ground.log.glob("*.jsonl") for text in file.read_text().splitlines()]
    return [json.loads(text) for text in texts if f'"type":"{kind}"' in text and text.endswith("}")]


def exposures_of(ground: Ground, kind: str) -> set[str]:
    """What lines that name no experiment are about."""
    return {line["exposure_id"] for line in whole_lines(ground, kind)}


def enrolled(ground: Ground, name: str) -> dict[str, Json]:
    """Exposure -> enrolment line."""
    return {line["exposure_id"]: line for line in ground.lines("enrolment", name)}


def written(folder: Path, lines: Sequence[Json]) -> Path:
    """A log of its own with these lines."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def graded_lines(ground: Ground) -> list[Json]:
    """What the log says of the graded experiment, and all feedback."""
    lines = [line for kind in ("enrolment", "completion") for line in ground.lines(kind, "graded")]
    return lines + whole_lines(ground, "feedback")


async def answer_and_grade(url: str, asked: list[Problem]) -> None:
    """One request per problem, by a unit of its own, and what its client says of the answer."""
    turn = asyncio.Semaphore(48)
    key = {"Authorization": f"Bearer {FEEDBACK_KEY}"}
    params = {"max_new_tokens": HORIZON, "temperature": 1.0}

    async def one(client: httpx.AsyncClient, problem: Problem) -> None:
        body = {"text": problem.text, "sampling_params": params}
        async with turn:
            answer = (await client.post("/generate", json=body, headers={"x-graded": problem.text})).json()
            right = float(is_correct(problem, answer["text"]))
            told = {"exposure_id": exposure_of(answer), "metric": "correct", "value": right}
            response = await client.post("/sglang_power/feedback", json=told, headers=key)
        assert response.status_code == httpx.codes.ACCEPTED, response.text

    async with httpx.AsyncClient(base_url=url, timeout=3 * WAIT_S) as client:
        await asyncio.gather(*(one(client, problem) for problem in asked))


@dataclass(frozen=True)
class ShadowedWorker:
    """What a worker served in the experiment with a shadow, and the decoded tokens of its shadow's runs."""

    served: int
    tokens: list[int]


def shadowed_workers(ground: Ground) -> dict[str, ShadowedWorker]:
    """File of its log -> a worker, for all that served the experiment."""
    workers = {}
    for file in ground.log.glob("*.jsonl"):
        lines = [json.loads(text) for text in file.read_text().splitlines() if '"shadowed"' in text]
        tokens = [line["tokens"]["decoded"] for line in lines if line["type"] == "shadow"]
        served = sum(line["type"] == "completion" for line in lines)
        if served:
            workers[file.name] = ShadowedWorker(served, tokens)
    return workers


def is_done_with_shadows(worker: ShadowedWorker) -> bool:
    """Whether its budget is spent, or all that it served has had its shadow."""
    return sum(worker.tokens) >= SHADOW_BUDGET or len(worker.tokens) == worker.served


def by_units(running: Server, name: str, **body: Any) -> list[httpx.Response]:
    """One request of each of some units."""
    return [ask(running, {f"x-{name}": f"user {number}"}, **body) for number in range(12)]


def events_of(running: Server, headers: dict[str, str], body: Json) -> list[Json]:
    """The chunks of a stream."""
    response = HTTP.post(running.url + "/generate", json=body, headers=headers)
    lines = [line for line in response.text.splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@dataclass(frozen=True)
class Timed:
    """A request of a switchback: its exposure, and when its client sent it."""

    exposure: str
    sent: float


def in_a_window(running: Server) -> Timed:
    """One request of nobody."""
    sent = time.time()
    body = {"prompt": PROMPT, "max_tokens": 4, "temperature": 1.0}
    response = ask(running, {}, "/v1/completions", **body)
    assert response.status_code == httpx.codes.OK, response.text
    return Timed(response.json()["metadata"]["power"][0]["exposure_id"], sent)


def shared_windows(ground: Ground) -> set[str]:
    """Windows that all workers have, of those that have any; servers that were stopped leave their logs."""
    units = []
    for file in ground.log.glob("*.jsonl"):
        lines = [json.loads(text) for text in file.read_text().splitlines() if '"windows"' in text]
        if enrolled_units := {line["unit"] for line in lines if line["type"] == "enrolment"}:
            units.append(enrolled_units)
    return set.intersection(*units) if len(units) == WORKERS else set()


def windows_between(sent: float, at: float) -> set[str]:
    """Those of which a request may be that was sent and enrolled then: it was assigned in between."""
    return {str(window) for window in range(int(sent // WINDOW_S), int(at // WINDOW_S) + 1)}


def washouts_between(sent: float, at: float) -> set[bool]:
    """What it may say of its washout, which is the beginning of a window."""
    ends = {when % WINDOW_S < WASHOUT_S for when in (sent, at)}
    return ends if sent // WINDOW_S == at // WINDOW_S else {True, False}
