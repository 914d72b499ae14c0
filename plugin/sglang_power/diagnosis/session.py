"""One diagnosis from its settings to its report: pairs of chains of every prompt, several at once."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from tqdm import tqdm

from sglang_power.algorithms.coupling import CoupledPair, Move, Place, moved, moves
from sglang_power.diagnosis.report import Diagnosis, PromptFinding, finding
from sglang_power.diagnosis.serving import ChainRequest, ServedChain, prompt_of
from sglang_power.engines.http.connection import Connection
from sglang_power.errors import ConfigError
from sglang_power.prompt_files import PromptLine
from sglang_power.rng import Key
from sglang_power.samplers.tasks import gather_or_cancel

JSON: Final = "diagnosis.json"

Maker: TypeAlias = Callable[[Move], Awaitable[Place]]
"""Makes a move of a chain."""


@dataclass(frozen=True)
class Settings:
    """What a command asks for.

    Args:
        request: what is diagnosed.
        replicas: pairs of each prompt.
        lag, steps: of a pair.
        confidence: 1 - delta of every bound.
        seed: of everything.
        concurrency: pairs at once.
    """

    request: ChainRequest
    replicas: int
    lag: int
    steps: int
    confidence: float
    seed: int
    concurrency: int


@dataclass(frozen=True)
class Served:
    """Who is diagnosed.

    Args:
        connection: to the server.
        model: its name there.
        versions: of SGLang and the plugin.
    """

    connection: Connection
    model: str
    versions: Mapping[str, str]


async def run_pair(make: Maker, key: Key, lag: int, steps: int) -> CoupledPair:
    """Run two coupled chains until they have met, or have had their steps.

    Args:
        make: makes a move of either chain.
        key, lag, steps: of the pair.
    """
    pair = CoupledPair(lag, steps)
    while not pair.is_over:
        places = await gather_or_cancel([_made(make, move) for move in moves(key, pair)])
        pair = moved(pair, tuple(places))
    return pair


async def _made(make: Maker, move: Move) -> Place:
    return await make(move)


@dataclass
class Run:
    """A run in progress.

    Args:
        served: who is diagnosed.
        settings: what is asked for.
        output: the folder of the report, which is written after every prompt.
        command: for the report.
    """

    served: Served
    settings: Settings
    output: Path
    command: str
    findings: dict[int, PromptFinding] = field(default_factory=dict, init=False)
    _pairs: dict[int, dict[int, CoupledPair]] = field(default_factory=dict, init=False)

    async def diagnose(self, lines: Sequence[PromptLine]) -> Diagnosis:
        """Run all pairs of all prompts, prompt by prompt.

        Raises:
            PowerError: the server refuses the request, or is gone; the report holds the prompts before.
        """
        connection, model = self.served.connection, self.served.model
        prompts = [await prompt_of(connection, model, line) for line in lines]
        chains = [ServedChain(connection, prompt, self.settings.request) for prompt in prompts]
        jobs = iter([(at, number) for at in range(len(lines)) for number in range(self.settings.replicas)])
        total = len(lines) * self.settings.replicas
        with tqdm(total=total, desc="pairs", unit="pair", file=sys.stderr) as bar:
            workers = [self._work(jobs, lines, chains, bar) for _ in range(self.settings.concurrency)]
            await gather_or_cancel(workers)
        return self.report()

    async def _work(
        self,
        jobs: Iterator[tuple[int, int]],
        lines: Sequence[PromptLine],
        chains: Sequence[ServedChain],
        bar: Any,
    ) -> None:
        settings = self.settings
        for at, number in jobs:
            key = Key(settings.seed, number)
            pair = await run_pair(chains[at].make, key, settings.lag, settings.steps)
            pairs = self._pairs.setdefault(at, {})
            pairs[number] = pair
            bar.update()
            if len(pairs) == settings.replicas:
                whole = [pairs[number] for number in range(settings.replicas)]
                self.findings[at] = finding(text_of(lines[at]), whole, chains[at], settings.confidence)
                self.write()

    def report(self) -> Diagnosis:
        """Return what is known of the prompts that are done."""
        settings, request = self.settings, self.settings.request
        return Diagnosis(
            model=self.served.model,
            versions=dict(self.served.versions),
            command=self.command,
            params=request.power,
            max_tokens=request.max_tokens,
            stop=request.stop,
            start_steps=request.start_steps,
            one_stage=request.power["block_size"] >= request.max_tokens,
            lag=settings.lag,
            steps=settings.steps,
            replicas=settings.replicas,
            confidence=settings.confidence,
            seed=settings.seed,
            prompts=tuple(self.findings[at] for at in sorted(self.findings)),
        )

    def write(self) -> None:
        """Write the report.

        Raises:
            ConfigError: it cannot be written.
        """
        try:
            self.output.mkdir(parents=True, exist_ok=True)
            text = self.report().model_dump_json(indent=1) + "\n"
            (self.output / JSON).write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{self.output} cannot be written: {error}") from error


def text_of(line: PromptLine) -> str:
    """Return a prompt's text; of a chat that of its last message."""
    if line.messages is None:
        return line.text or ""
    return str((line.messages or [{}])[-1].get("content", ""))
