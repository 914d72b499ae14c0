"""How an item is put to a model: as a chat, or as a text that goes on. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sglang_power.errors import ConfigError
from sglang_power.evaluation.catalogue import Api, Task
from sglang_power.evaluation.items import Item, Kind

INSTRUCTIONS: Final[Mapping[Kind, str]] = {
    "number": "Think step by step, and end with the sentence: The answer is NUMBER.",
    "math": "Think step by step, and put the final answer within \\boxed{}.",
    "choice": "Think step by step, and end with the sentence: The answer is (LETTER).",
    "text": "Give the answer and nothing else.",
    "regex": "",
    "code": "Complete this Python function. Answer with the whole function in one block that begins with "
    "```python.",
}

NEXT_QUESTION: Final = "\n\nQuestion:"
"""Ends an answer that would go on with a further question, as examples teach it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """An item as it is sent.

    Args:
        item: the item.
        prompt: of a chat the user's message, else the text that is to go on.
    """

    item: Item
    prompt: str

    @property
    def digest(self) -> str:
        """Return a hash of the prompt, and of what is right."""
        return hashlib.sha256((self.prompt + self.item.digest).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Questions:
    """A task as it is sent.

    Args:
        asked: every item.
        stop: strings that end an answer.
    """

    asked: Sequence[Asked]
    stop: Sequence[str]


def questions(task: Task, api: Api, shots: int, limit: int | None) -> Questions:
    """Return the prompts of a task.

    Args:
        task: what is asked.
        api: by which route; texts that go on are introduced by Question: and Answer:, chats end with an
            instruction. Prompts of users' own files and of HumanEval's texts are sent as they are.
        shots: examples before each question: the last items of the task, which are not asked then.
        limit: the first so many items.

    Raises:
        ConfigError: the task has no examples, or nothing is left to ask.
    """
    items, examples = list(task.items), list[Item]()
    if shots:
        examples, items = items[-shots:], items[:-shots]
        if not items or any(item.raw or not item.worked for item in examples):
            raise ConfigError(f"--shots {shots}: {task.name} has no worked examples, or too few items")
    kept = items if limit is None else items[:limit]
    if not kept:
        raise ConfigError("--limit: at least 1")
    before = "".join(f"{_texted(example)} {example.worked}\n\n" for example in examples)
    written = [Asked(item, _prompt(item, api, before)) for item in kept]
    asks_texts = api == "completions" and not all(_as_it_is(item, api) for item in kept)
    return Questions(written, (*task.card.stop, *((NEXT_QUESTION,) if asks_texts else ())))


def _as_it_is(item: Item, api: Api) -> bool:
    return item.raw or (item.kind == "code" and api == "completions")


def _prompt(item: Item, api: Api, before: str) -> str:
    if _as_it_is(item, api):
        return item.question
    if api == "completions":
        return before + _texted(item)
    shown = f"{INSTRUCTIONS[item.kind]}\n\n```python\n{item.question}```" if item.kind == "code" else ""
    return shown or f"{before}{item.question}\n\n{INSTRUCTIONS[item.kind]}"


def _texted(item: Item) -> str:
    return f"Question: {item.question}\nAnswer:"
