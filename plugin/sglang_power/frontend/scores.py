"""What is measured of branches: log p of what they drew, margins of their answers, the model's verdict.

Every token that a branch drew is scored by one prefill pass at temperature 1, whatever law drew it. Owns the
requests for that; the choice itself is `selecting`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from sglang_power.algorithms.cot import confidence
from sglang_power.answers import Extracted, Extractor, TimedOut, spelled
from sglang_power.engines.http.wire import NEUTRAL
from sglang_power.errors import HostError, RequestError
from sglang_power.frontend.client import Client
from sglang_power.frontend.group import Generated, Group
from sglang_power.frontend.ledger import DrawnText
from sglang_power.types import ROW_FIELDS, Tokens, Usage

T = TypeVar("T")

CHAT_LAW = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""Where the chat API takes the model's generation config for what a request leaves out."""

ALTERNATIVES = 20
"""Of the chat API's log probabilities; more is not allowed."""


def token_log_probs(client: Client, draws: Sequence[Generated]) -> list[list[float]]:
    """log p of every token of some segments, stops included."""
    metas = client.input_log_probs([(prefix, draw.ids) for prefix, draw in draws]) if draws else []
    return [
        [float(log_p) for log_p, _, _ in meta["input_token_logprobs"][-len(draw.ids) :]]
        for meta, (_, draw) in zip(metas, draws, strict=True)
    ]


def scored_tokens(client: Client, prefix: Sequence[int], draw: DrawnText) -> Tokens:
    """A segment with its log p and margins; the other statistics are not known to a client, and NaN."""
    meta = client.input_log_probs([(prefix, draw.ids)], top=2)[0]
    rows = np.full((len(draw.ids), len(ROW_FIELDS)), math.nan)
    taken = meta["input_token_logprobs"][-len(draw.ids) :]
    best = meta["input_top_logprobs"][-len(draw.ids) :]
    for row, token, (log_p, _, _), top in zip(rows, draw.ids, taken, best, strict=True):
        other = max((other for other, rival, _ in top if rival != token), default=-math.inf)
        row[ROW_FIELDS.index("log_p")] = log_p
        row[ROW_FIELDS.index("margin")] = math.exp(log_p) - math.exp(other)
    return Tokens.of(draw.ids, rows)


def segment_of(group: Group, name: str, variable: str | None) -> Generated:
    """The generated segment that holds a branch's answer.

    Raises:
        RequestError: the branch has generated none, or none of that name.
    """
    draws = group.draws(name)
    if variable is not None:
        draws = [drawn for drawn in draws if drawn[1].name == variable]
    if not draws:
        missing = "has generated nothing" if variable is None else f"has not generated {variable!r}"
        raise RequestError("group", name, f"this branch {missing}", "Generate in every branch first")
    return draws[-1]


def delta(client: Client, drawn: Generated, extractor: Extractor) -> float | None:
    """Delta of a branch: the mean margin of its answer tokens (CoT-decoding); None where it has no answer."""
    prefix, draw = drawn
    found = answer_of(draw.text, extractor)
    if found is None:
        return None
    tokens = spelled(lambda ids: client.decode([ids])[0], draw.ids).tokens_of(found.span)
    return confidence(scored_tokens(client, prefix, draw), tokens)


def answer_of(text: str, extractor: Extractor) -> Extracted | None:
    """The answer in a text.

    Raises:
        RequestError: the client's pattern took too long, so nobody knows.
    """
    found = extractor.extract(text)
    if isinstance(found, TimedOut):
        raise RequestError("answer_regex", text, f"no result in {found.seconds} s", "Use a simpler pattern")
    return found


@dataclass(frozen=True, slots=True)
class ChatJudge:
    """Asks the served model questions by its chat API; an `answers.Asker`."""

    client: Client

    async def yes(self, question: str) -> tuple[float, Usage]:
        """Return the probability of yes against no, with what asking has cost."""
        return self.probability(question), Usage.of_call(1)

    def probability(self, question: str) -> float:
        """Return the probability of yes against no, in the model's 20 most likely first tokens.

        Raises:
            HostError: neither of the two is among them.
        """
        answer = self.client.chat(
            {
                "messages": [{"role": "user", "content": question}],
                "max_tokens": 1,
                **{name: NEUTRAL[name] for name in CHAT_LAW},
                "logprobs": True,
                "top_logprobs": ALTERNATIVES,
            }
        )
        first = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        p = {"yes": 0.0, "no": 0.0}
        for alternative in first:
            word = alternative["token"].strip().lower()
            if word in p:
                p[word] += math.exp(alternative["logprob"])
        if (total := sum(p.values())) == 0.0:
            raise HostError(
                "the served model answers neither yes nor no; by='self_evaluation' needs one that does"
            )
        return p["yes"] / total


def run_coroutine(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end; programs are synchronous, and may run inside of somebody's event loop."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
