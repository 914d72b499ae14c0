"""Files of prompts that commands read: one a line, or (.jsonl) an object a line. Knows no server."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from sglang_power.errors import ConfigError

Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PromptLine:
    """One line of the prompts' file: a text, or the messages of a chat."""

    text: str | None = None
    messages: list[Json] | None = None


def read_prompts(path: Path, *, chat: bool, fewest: int) -> list[PromptLine]:
    """Return the prompts of a file, in order.

    Args:
        path: of the file.
        chat: whether texts are messages of a user.
        fewest: prompts that there have to be.

    Raises:
        ConfigError: unreadable, too few prompts, or a line that is none; with its number.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    as_json = path.suffix == ".jsonl"
    prompts = [
        _json_prompt(path, number, line, chat=chat) if as_json else _text_prompt(line, chat=chat)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if len(prompts) < fewest:
        raise ConfigError(
            f"{path}: {len(prompts)} prompts; give at least {fewest}, better more, of the kind you serve"
        )
    return prompts


def _text_prompt(text: str, *, chat: bool) -> PromptLine:
    return PromptLine(messages=[{"role": "user", "content": text}]) if chat else PromptLine(text=text)


def _json_prompt(path: Path, number: int, line: str, *, chat: bool) -> PromptLine:
    where = f"{path}, line {number}"
    try:
        told = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON: {error}") from error
    if isinstance(told, dict) and isinstance(told.get("messages"), list):
        return PromptLine(messages=told["messages"])
    text = (told.get("text") or told.get("prompt")) if isinstance(told, dict) else None
    if not isinstance(text, str):
        raise ConfigError(f"{where}: an object with text, prompt or messages is needed")
    return _text_prompt(text, chat=chat)
