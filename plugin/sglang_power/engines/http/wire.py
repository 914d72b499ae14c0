"""What is asked of SGLang's /generate, and how its answers are read. Pure: dictionaries in and out.

Token ids go both ways, never text: a text may be tokenised in another way when it comes back. Every request
names all sampling parameters, so that neither the model's generation config nor --preferred-sampling-params
nor a default preset of the plugin acts on it. Facts of SGLang 0.5.20 to 0.5.23.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sglang_power.algorithms.cot import GREEDY
from sglang_power.algorithms.engine import RankedToken
from sglang_power.errors import HostError
from sglang_power.fields import UNTEMPERED
from sglang_power.types import ProposalLaw, Tokens, Usage

Json = dict[str, Any]
"""A JSON object of SGLang's API."""

NEUTRAL: Json = {
    **UNTEMPERED,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
    "min_new_tokens": 0,
    "n": 1,
    "ignore_eos": False,
    "logit_bias": None,
    "stop": None,
    "stop_regex": None,
    "json_schema": None,
    "regex": None,
    "ebnf": None,
    "structural_tag": None,
    "custom_params": {"sampler": "none"},
}

FORCING_BIAS = 1e5
"""Added to one logit, it makes that token the greedy one."""

SHOWN_FOR_LAST_ID = 0
"""The id that SGLang shows beside the log probability of the vocabulary's last id in a prompt; the value is
right (logprob_result_processor.py)."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One continuation.

    Args:
        before: prompt and prefix, at least one token.
        forced: ids that follow; they are scored by the prefill of the same request.
        fresh: how many tokens to draw behind them at most; may be 0.
        law: of the draws, one of those that `capabilities` accepts.
        seed: for a server with --enable-deterministic-inference. Without one such a server gives every
            request the same seed, and all proposals behind one cut would be the same.
        stop_token_ids: stops beside the model's own.
    """

    before: tuple[int, ...]
    forced: tuple[int, ...]
    fresh: int
    law: ProposalLaw
    seed: int
    stop_token_ids: tuple[int, ...]

    def body(self) -> Json:
        """The request. SGLang scores nothing at the position that it starts at, so it starts one before."""
        params = {
            "max_new_tokens": self.fresh,
            "top_k": 1 if self.law == GREEDY else NEUTRAL["top_k"],
            "stop_token_ids": list(self.stop_token_ids),
            "sampling_seed": self.seed,
        }
        return {
            "input_ids": [*self.before, *self.forced],
            "sampling_params": {**NEUTRAL, **params},
            "return_logprob": True,
            "logprob_start_len": len(self.before) - 1 if self.forced else -1,
            "top_logprobs_num": 2,
        }

    def read(self, answer: Json) -> Tokens:
        """The new tokens: forced ones, where the prefill got to its end, then drawn ones."""
        meta, ids = answer["meta_info"], [int(token) for token in answer["output_ids"]]
        if not ids and meta["finish_reason"]["type"] == "abort":
            return Tokens.EMPTY
        drawn = self._rows(ids, meta["output_token_logprobs"], meta["output_top_logprobs"])
        if not self.forced:
            return Tokens.of(ids, drawn)
        count = len(self.forced)
        entries, tops = meta["input_token_logprobs"][-count:], meta["input_top_logprobs"][-count:]
        return Tokens.of([*self.forced, *ids], [*self._rows(self.forced, entries, tops), *drawn])

    def _rows(
        self, ids: Sequence[int], entries: Sequence[Any], tops: Sequence[Any]
    ) -> list[tuple[float, ...]]:
        """A row per id; SGLang may list the row of the next token too, which was not asked for."""
        if len(entries) < len(ids) or len(tops) < len(ids):
            raise HostError(f"the server sent {len(entries)} log probabilities of {len(ids)} tokens")
        rows = []
        for token, (log_p, shown, _), top in zip(ids, entries, tops, strict=False):
            if shown not in (token, SHOWN_FOR_LAST_ID):
                raise HostError(f"the server sent the log probability of token {shown}, not of {token}")
            rows.append(row_of(token, log_p, top, self.law))
        return rows


def row_of(token: int, sent: float | None, top: Sequence[Any], law: ProposalLaw) -> tuple[float, ...]:
    """ROW_FIELDS of one token; the entropies, which one pass does not state, are NaN.

    A greedy draw has log_q = 0 where no token is more likely; among exact ties that is so for each, since
    which one the server takes cannot be told from outside.

    Args:
        token: its id.
        sent: as the server sent it.
        top: [log_p, id, text] of the two most likely tokens, best first.
        law: of the draw.
    """
    log_p, largest = _number(sent), _number(top[0][0])
    second = math.exp(_number(top[1][0])) if len(top) > 1 else 0.0
    is_largest = token == top[0][1] or log_p >= largest
    gap = math.exp(largest) - second
    margin = gap if is_largest else math.exp(log_p) - math.exp(largest)
    log_q = log_p if law != GREEDY else (0.0 if is_largest else -math.inf)
    return (log_p, log_q, 0.0, math.nan, math.nan, gap, margin)


def prompt_body(prompt: str | Sequence[int]) -> Json:
    """A request that caches the prompt and says how it is tokenised."""
    asked = {"text": prompt} if isinstance(prompt, str) else {"input_ids": list(prompt)}
    return {
        **asked,
        "sampling_params": {**NEUTRAL, "max_new_tokens": 0},
        "return_prompt_token_ids": True,
    }


def ranking_body(before: Sequence[int], count: int) -> Json:
    """A request for the most likely next tokens.

    The bias of zero changes nothing but has the server check that the vocabulary holds `count` tokens: a
    larger number of alternatives would end its scheduler.
    """
    params = {"max_new_tokens": 1, "top_k": 1, "logit_bias": {str(count - 1): 0.0}}
    return {
        "input_ids": list(before),
        "sampling_params": {**NEUTRAL, **params},
        "return_logprob": True,
        "top_logprobs_num": count,
    }


def read_ranking(answer: Json) -> list[RankedToken]:
    """The most likely tokens, best first."""
    top = answer["meta_info"]["output_top_logprobs"][0]
    return [RankedToken(int(token), _number(log_p)) for log_p, token, _ in top]


def stops_body(tokens: Sequence[int]) -> Json:
    """Requests that each decode one of these tokens, to see whether it ends a sequence."""
    forcing = [{"top_k": 1, "max_new_tokens": 1, "logit_bias": {str(v): FORCING_BIAS}} for v in tokens]
    return {
        "input_ids": [[token] for token in tokens],
        "sampling_params": [{**NEUTRAL, **params} for params in forcing],
    }


def read_stops(tokens: Sequence[int], answers: Sequence[Json]) -> dict[int, bool]:
    """Whether each of these tokens ends a sequence."""
    if [answer["output_ids"] for answer in answers] != [[token] for token in tokens]:
        raise HostError("the server did not decode the tokens that a logit bias forces")
    return {
        token: answer["meta_info"]["finish_reason"]["type"] == "stop"
        for token, answer in zip(tokens, answers, strict=True)
    }


def usage_of(meta: Json) -> Usage:
    """What one request cost; one that was aborted in the queue names no prompt tokens."""
    decoded = int(meta["completion_tokens"])
    prefilled = int(meta.get("prompt_tokens") or 0) - int(meta.get("cached_tokens") or 0)
    return Usage.of_call(decoded, prefilled=prefilled)


def _number(log_p: float | None) -> float:
    """JSON has no infinity: null stands for a probability that underflows to 0."""
    return -math.inf if log_p is None else float(log_p)
