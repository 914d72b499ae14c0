"""What is asked: prompts with their right answers, and the settings of the grid that suit them. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sglang_power.errors import ConfigError

CHAIN: Final[Mapping[str, Any]] = {
    "alpha": 4.0,
    "proposal_temperature": 1.0,
    "block_size": 192,
    "steps": 10,
    "cut": "uniform",
}
"""Metropolis-Hastings on a model of which nothing is known; temperature 1 is what plain logprobs allow."""

PARTICLES: Final[Mapping[str, Any]] = {"alpha": 4.0, "proposal_temperature": 1.0, "block_size": 16}


@dataclass(frozen=True, slots=True)
class Task:
    """One prompt, as text.

    Args:
        text: the prompt.
        answer: what is right; None where nobody knows.
    """

    text: str
    answer: str | None = None


@dataclass(frozen=True)
class Workload:
    """Prompts of one kind.

    Args:
        name: in serve.json.
        tasks: asked in this order, as many as a run wants.
        max_new_tokens: the horizon.
        answer_regex: its first match in a text, or the group of it, is compared with what is right.
        chain: parameters of the MH that the plugin, the naive client and the published algorithm share.
        power: parameters of the row `power`, where they are others.
        particles: of the rows of `smc`, without N and K.
        vote: of the rows of `vote`, without `stopping`.
        deciding: what only the vote that stops takes, such as its window.
        left_out: rows that make no sense here, with the reason.
    """

    name: str
    tasks: Sequence[Task]
    max_new_tokens: int
    answer_regex: str | None = None
    chain: Mapping[str, Any] = field(default_factory=lambda: CHAIN)
    power: Mapping[str, Any] = field(default_factory=lambda: {**CHAIN, "cut": "entropy"})
    particles: Mapping[str, Any] = field(default_factory=lambda: PARTICLES)
    vote: Mapping[str, Any] = field(default_factory=lambda: {"samples": 8})
    deciding: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def prompts(self) -> str:
        """Return a hash of the tasks."""
        told = json.dumps([[task.text, task.answer] for task in self.tasks])
        return hashlib.sha256(told.encode()).hexdigest()[:12]

    def is_correct(self, task: Task, text: str) -> bool | None:
        """Say whether an answer is right; None where that is not known."""
        if self.answer_regex is None or task.answer is None:
            return None
        found = re.search(self.answer_regex, text)
        return found is not None and found[found.re.groups and 1] == task.answer


def read_workload(path: Path, max_new_tokens: int, answer_regex: str | None) -> Workload:
    """Return the prompts of a file: one a line, or (.jsonl) an object a line with text or prompt, and answer.

    Raises:
        ConfigError: unreadable, without prompts, or a line that is none; with its number.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    tasks = [
        _task(f"{path}, line {number}", line) if path.suffix == ".jsonl" else Task(line)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not tasks:
        raise ConfigError(f"{path}: no prompts")
    return Workload(path.stem, tasks, max_new_tokens, answer_regex)


def _task(where: str, line: str) -> Task:
    try:
        told = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON: {error}") from error
    text = (told.get("text") or told.get("prompt")) if isinstance(told, dict) else None
    if not isinstance(text, str):
        raise ConfigError(f"{where}: an object with text or prompt is needed, and answer if it is known")
    answer = told.get("answer")
    return Task(text, None if answer is None else str(answer))
