"""Experiments on a real server: their files, their traffic, their log.

Each test has an experiment of its own, whose unit is a header of its own, so that one server serves them all:
requests without that header are nobody's.
"""

from __future__ import annotations

import asyncio
import collections
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from sglang_power.experiments.analysis.report import report
from sglang_power.experiments.analysis.requests import Scope
from sglang_power.experiments.analysis.results import Report
from sglang_power.experiments.catalogue import read_experiment
from sglang_power.experiments.versions import config_hash

from integration_tests.helpers import preloaded
from integration_tests.helpers.clients import HTTP, PROMPT, WAIT_S
from integration_tests.server import PIVOT_MODEL, Server, ServerSpec, running

UNIT_KEY, FEEDBACK_KEY = "unit key", "feedback key"
WORKERS = 2
GONE = "gone"
"""A reward that nobody serves."""

LATER_S = 2 * 86_400.0
"""By when the outcome windows of a day have closed."""

SHORT = {"max_new_tokens": 4, "temperature": 1.0}
"""What most requests ask for: few tokens, nothing of their own about how to sample."""

PLAIN = {"name": "plain", "sampler": {"sampler": "none"}, "weight": 5000, "control": "plain"}
POWER = {"name": "power", "sampler": {"sampler": "power", "block_size": 4, "steps": 1}, "weight": 5000}
"""One Metropolis-Hastings step."""

SHORTLISTED: dict[str, Any] = {
    "name": "shortlisted",
    "sampler": {"sampler": "shortlist", "samples": 4, "keep": 2, "reward": "brevity", "answer": "text"},
    "weight": 10_000,
}
"""Another package's sampler (third_party_sampler.py), with a reward and with the served model's judgement."""

MAIN, REWEIGHTED = (
    [{**PLAIN, "weight": 10_000 - weight}, {**POWER, "weight": weight}] for weight in (2_000, 3_000)
)
"""Arms of the experiment with the most traffic: mostly plain, which is the cheaper one."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Ground:
    """Where a server's experiments and logs are."""

    folder: Path

    @property
    def experiments(self) -> Path:
        return self.folder / "experiments"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def write(self, name: str, **fields: Any) -> Path:
        """Write, or replace at once, the file of an experiment whose unit is the header `x-<name>`."""
        values: Json = {
            "name": name,
            "owner": "tests",
            "hypothesis": "Power answers better.",
            "unit": {"header": f"x-{name}"},
            "arms": [PLAIN, POWER],
            "metrics": {"good": {"source": "feedback", "low": 0.0, "high": 1.0, "absent": 0.0}},
            "primary": {"metric": "good", "min_effect": 0.0},
            **fields,
        }
        self.experiments.mkdir(parents=True, exist_ok=True)
        path = self.experiments / f"{name}.yaml"
        half = path.with_suffix(".half")
        half.write_text(yaml.safe_dump(values, sort_keys=False))
        half.replace(path)
        return path

    def lines(self, kind: str, experiment: str) -> list[Json]:
        """Whole lines of a kind, of all processes, in no order."""
        wanted = f'"type":"{kind}"', f'"experiment":"{experiment}"'
        texts = [line for file in self.log.glob("*.jsonl") for line in file.read_text().splitlines()]
        return [
            json.loads(text) for text in texts if all(part in text for part in wanted) and text.endswith("}")
        ]

    def environment(self, **sections: Json) -> dict[str, str]:
        """Environment of a server with these experiments and further sections of its configuration."""
        config = self.folder / "config.yaml"
        settings = {"directory": str(self.experiments), "log": str(self.log)}
        config.write_text(yaml.safe_dump({"experiments": settings, **sections}))
        return {
            "SGLANG_POWER_CONFIG": str(config),
            "SGLANG_POWER_UNIT_KEY": UNIT_KEY,
            "SGLANG_POWER_FEEDBACK_KEY": FEEDBACK_KEY,
        }

    def spec(self, *arguments: str, **environment: str) -> ServerSpec:
        """The pivot model behind two tokenizer workers, with experiments."""
        rewards = {GONE: {"url": "http://127.0.0.1:9/score", "retries": 0}}
        return ServerSpec(
            PIVOT_MODEL,
            "trials",
            [
                *["--page-size", "1", "--tokenizer-worker-num", str(WORKERS), "--enable-metrics"],
                *["--enable-priority-scheduling", "--default-priority-value", "0"],
                *["--log-level-http", "warning", *arguments],
            ],
            {**self.environment(rewards=rewards), **environment},
        )


class Trials:
    """A server that can be started again on the same ground."""

    def __init__(self, ground: Ground) -> None:
        self.ground, self._stack = ground, ExitStack()
        self.server = self._started()

    def _started(self) -> Server:
        return self._stack.enter_context(running(self.ground.spec(), self.ground.folder, preloaded.fork))

    def restart(self) -> Server:
        """Stop the server, and start it with the same files."""
        self.stop()
        self.server = self._started()
        return self.server

    def revive(self) -> None:
        """Start the server where a test has killed it."""
        if not self.is_alive():
            self.restart()

    def stop(self) -> None:
        """Stop the server."""
        self._stack.close()

    def is_alive(self) -> bool:
        """Whether anybody listens."""
        try:
            HTTP.get(self.server.url + "/health")
        except httpx.HTTPError:
            return False
        return True


def ask(server: Server, headers: dict[str, str], path: str = "/generate", **body: Any) -> httpx.Response:
    """One short request."""
    asked = {"text": PROMPT, "sampling_params": SHORT} if path == "/generate" else {"model": "trials"}
    return HTTP.post(server.url + path, json={**asked, **body}, headers=headers)


def feedback(server: Server, *, key: str | None = FEEDBACK_KEY, **sent: Any) -> httpx.Response:
    """POST feedback."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return HTTP.post(server.url + "/sglang_power/feedback", headers=headers, **sent)


def reported(ground: Ground, name: str, log: Path | None = None) -> Report:
    """The report of an experiment, as of when all its outcome windows have closed."""
    experiment = read_experiment(ground.experiments / f"{name}.yaml")
    return report(log or ground.log, Scope(experiment, config_hash(experiment), 0, time.time() + LATER_S))


def exposure_of(answer: Any) -> str | None:
    """The exposure id of an answer of /generate, if it was enrolled."""
    found: str | None = (answer["meta_info"].get("power") or {}).get("exposure_id")
    return found


@dataclass(frozen=True)
class Traffic:
    """What many requests got: status and exposure id (None: not enrolled), in order."""

    statuses: list[int]
    exposures: list[str | None]


def drive(
    server: Server,
    header: str,
    units: Sequence[str],
    *,
    at_once: int = 48,
    timeout: float = WAIT_S,
    **body: Any,
) -> Traffic:
    """One request per entry of `units`, many at once; a client that times out has status 0.

    Each has a connection of its own: of connections that are kept, one worker may have taken all.
    """

    async def all_of_them() -> list[tuple[int, str | None]]:
        limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=0)
        turn = asyncio.Semaphore(at_once)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=timeout) as client:

            async def one(unit: str) -> tuple[int, str | None]:
                asked = {"text": PROMPT, "sampling_params": SHORT, **body}
                async with turn:
                    try:
                        response = await client.post("/generate", json=asked, headers={header: unit})
                    except (httpx.TimeoutException, httpx.RemoteProtocolError, httpx.NetworkError):
                        return 0, None
                ok = response.status_code == httpx.codes.OK
                return response.status_code, exposure_of(response.json()) if ok else None

            return await asyncio.gather(*[one(unit) for unit in units])

    results = asyncio.run(all_of_them())
    return Traffic([status for status, _ in results], [exposure for _, exposure in results])


def assigned(ground: Ground, experiment: str) -> dict[str, set[str]]:
    """Unit, as the log calls it -> its arms."""
    arms: dict[str, set[str]] = collections.defaultdict(set)
    for line in ground.lines("enrolment", experiment):
        arms[line["unit"]].add(line["arm"])
    return arms


def wait_until(holds: Callable[[], bool], server: Server) -> None:
    """Wait for something that becomes true; requests of nobody keep both workers awake meanwhile."""
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, server.log_text()[-2000:]
        for _ in range(4):
            assert (
                ask(server, {}).status_code == httpx.codes.OK
            )  # a new connection each: any worker may take it
        time.sleep(0.1)


def load_and_wait(trials: Trials, experiments: Mapping[str, Json]) -> None:
    """Write the files of experiments, and wait until every worker has taken all of them."""
    ground = trials.ground
    before = {name: len(ground.lines("change", name)) for name in experiments}
    for name, fields in experiments.items():
        ground.write(name, **fields)

    def taken() -> bool:
        return all(len(ground.lines("change", name)) >= before[name] + WORKERS for name in experiments)

    wait_until(taken, trials.server)


def write_and_wait(trials: Trials, name: str, **fields: Any) -> None:
    """Write the file of one experiment, and wait until every worker has taken it."""
    load_and_wait(trials, {name: fields})
