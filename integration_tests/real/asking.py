"""One request per sampler for a real model: what `make real` shows and `make test-real` checks.

Owns prompts and parameters; knows the OpenAI routes and no server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import openai
from sglang_power.reports import report_of

from integration_tests.real.catalogue import RealModel

__all__ = ["QUESTIONS", "Answer", "Question", "ask", "prompt_of"]

LONG, SHORT, COUNTED = "long", "short", "counted"

PROMPTS: Final[Mapping[bool, Mapping[str, str]]] = {
    True: {
        LONG: "Give me one fact about the Moon, in one sentence.",
        SHORT: "What is the capital of France? Answer with one word.",
        COUNTED: "A box holds 3 red and 4 blue balls. How many balls are in it?",
    },
    False: {
        LONG: "The Moon is",
        SHORT: "The Eiffel Tower is in the city of",
        COUNTED: "Question: What is 2 + 3?\nAnswer: 5\n\nQuestion: What is 4 + 5?\nAnswer:",
    },
}
"""By whether the model was tuned for chats; a base model continues its prompt."""


@dataclass(frozen=True)
class Question:
    """One answer to ask for.

    Args:
        label: of the line that shows it.
        prompt: one of the names in PROMPTS.
        max_tokens: of the answer.
        custom_params: what names the sampler; None for SGLang's own sampling, at temperature 1.
        sampler: that has to have run; None for SGLang's own.
    """

    label: str
    prompt: str
    max_tokens: int
    custom_params: Mapping[str, Any] | None
    sampler: str | None


@dataclass(frozen=True)
class Answer:
    """An answer and what its sampler reports; None where SGLang sampled by itself."""

    text: str
    report: Mapping[str, Any] | None


def _question(prompt: str, max_tokens: int, sampler: str, **params: Any) -> Question:
    return Question(sampler, prompt, max_tokens, {"sampler": sampler, "seed": 1, **params}, sampler)


QUESTIONS: Final[Sequence[Question]] = (
    Question("plain", LONG, 32, None, None),
    _question(LONG, 32, "power"),
    _question(LONG, 32, "smc"),
    Question("fast-exact", LONG, 32, {"preset": "fast-exact", "seed": 1}, "smc"),
    _question(SHORT, 2, "perfect", strict=True),
    _question(COUNTED, 32, "cot"),
    _question(COUNTED, 32, "branch"),
    _question(COUNTED, 32, "vote"),
    _question(LONG, 32, "best_of", answer="text"),
    _question(LONG, 32, "lookahead", candidates=4, rollouts=4, block_size=8, rollout_tokens=8),
)
"""Small enough for a CPU; `fast-exact` is the preset of configs/fast-exact.yaml."""


def prompt_of(model: RealModel, question: Question) -> str:
    """Return the text that a model is asked."""
    return PROMPTS[model.chat][question.prompt]


def ask(client: openai.OpenAI, model: RealModel, question: Question) -> Answer:
    """Ask a chat model by /v1/chat/completions, and a base model by /v1/completions.

    Raises:
        HostError: another sampler ran than the one that was asked for.
        openai.APIError: the server refused or failed.
    """
    sampling: dict[str, Any] = {"model": model.name, "max_tokens": question.max_tokens, "temperature": 1.0}
    if question.custom_params is not None:
        del sampling["temperature"]  # which a sampler of whole answers has none of
        sampling["extra_body"] = {"custom_params": dict(question.custom_params)}
    text = prompt_of(model, question)
    if model.chat:
        chat = client.chat.completions.create(messages=[{"role": "user", "content": text}], **sampling)
        answered, whole = chat.choices[0].message.content or "", chat.model_dump()
    else:
        completion = client.completions.create(prompt=text, **sampling)
        answered, whole = completion.choices[0].text, completion.model_dump()
    if question.sampler is None:
        return Answer(answered, None)
    (report,) = (whole.get("metadata") or {}).get("power") or [None]
    return Answer(answered, report_of(report, question.sampler))
