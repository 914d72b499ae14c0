"""Dresses a chain's state as SGLang's own response dictionaries. Tokenizer process.

The keys are those that the serving layers of SGLang 0.5.20 to 0.5.23 index; log probabilities are those
of the final sequence under the base law (temperature 1), not of the proposal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from sglang_power.server import metrics
from sglang_power.sglang_host.tokenizer.alternatives import AlternativesRequest
from sglang_power.sglang_host.tokenizer.children import Prompt
from sglang_power.sglang_host.tokenizer.parent import Parent
from sglang_power.sglang_host.tokenizer.stopping import StopRule, TextRule
from sglang_power.types import Tokens

Answer = dict[str, Any]
"""SGLang's response dictionary: text, output_ids, meta_info."""

Emit = Callable[[int, Answer], None]
"""Takes the chunks and answers of a stream, with the index of the choice."""


_KEPT_META = frozenset(
    {
        "weight_version",
        "cached_tokens",
        "cached_tokens_details",
        "reasoning_tokens",
        "request_received_ts",
        "input_token_logprobs",
        "input_top_logprobs",
        "input_token_ids_logprobs",
    }
)
"""What holds for the whole request in the answer to the request that cached its prompt."""


class AnswerWriter:
    """Writes the chunks and the answer of one parent request.

    Args:
        parent: the request.
        prompt: its cached prompt.
        stop, text: when it stops and how it is decoded.
        dp_rank: the data-parallel rank of its chain; None means where the prompt was cached.
    """

    def __init__(
        self, parent: Parent, prompt: Prompt, stop: StopRule, text: TextRule, dp_rank: int | None = None
    ) -> None:
        self._parent, self._prompt, self._stop, self._text = parent, prompt, stop, text
        self._dp_rank = prompt.meta_info.get("dp_rank") if dp_rank is None else dp_rank
        self._started = time.perf_counter()

    def final(self, tokens: Tokens, finished: bool, power: dict[str, Any]) -> Answer:
        """The whole answer."""
        reason = self._stop.finish_reason(tokens.ids, finished)
        return self._answer(tokens, self._text.final_text(tokens.ids, reason), reason, power)

    def aborted(self, tokens: Tokens, message: str, power: dict[str, Any]) -> Answer:
        """What there was when the request was aborted."""
        text = self._text.final_text(tokens.ids, self._stop.finish_reason(tokens.ids, self._ended(tokens)))
        return self._answer(tokens, text, {"type": "abort", "message": message}, power)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, as the request wants them decoded; no stop is trimmed."""
        return self._text.decode(ids)

    def count(self, answer: Answer) -> None:
        """Count an answer (final or aborted) in SGLang's metrics and in the plugin's."""
        meta, enabled = answer["meta_info"], self._parent.manager.enable_metrics
        power = meta["power"]
        self._parent.count_answer(meta)
        metrics.observe(power, meta["e2e_latency"], enabled)
        if power.get("law") == "policy":
            metrics.observe_policy(power["sampler"], meta["finish_reason"]["type"], enabled)

    @property
    def incremental(self) -> bool:
        """Whether the server streams deltas instead of cumulative text."""
        return bool(self._parent.manager.incremental_streaming_output)

    def partial(self, committed: Tokens, power: dict[str, Any]) -> Answer:
        """A chunk of a stream: tokens that no later step can change, maybe none."""
        return self._answer(committed, self._committed_text(committed), None, power)

    def _committed_text(self, committed: Tokens) -> str:
        """Text that the final answer begins with: no stop, no beginning of one, no split character."""
        if self._ended(committed):
            return self._text.final_text(committed.ids, self._stop.finish_reason(committed.ids, True))
        text = self._text.decode(committed.ids)
        while text.endswith("�"):
            text = text[:-1]
        held_back = max((len(s) - 1 for s in self._stop.strings), default=0)
        return text[: max(len(text) - held_back, 0)]

    def _ended(self, tokens: Tokens) -> bool:
        """Whether the tokens, which begin an answer, are all of it: a stop inside is always at its end."""
        return len(tokens) > 0 and self._stop.stops_at(tokens.ids, len(tokens))

    def _answer(
        self, tokens: Tokens, text: str, reason: dict[str, Any] | None, power: dict[str, Any]
    ) -> Answer:
        meta = {
            **{key: value for key, value in self._prompt.meta_info.items() if key in _KEPT_META},
            "id": self._parent.obj.rid,
            "dp_rank": self._dp_rank,
            "finish_reason": reason,
            "prompt_tokens": len(self._prompt.ids),
            "completion_tokens": len(tokens),
            "num_retractions": self._parent.retractions,
            "weight_versions": self._weight_versions(tokens),
            "e2e_latency": time.perf_counter() - self._started,
            "power": power,
        }
        self._add_logprobs(tokens, meta)
        answer: Answer = {"text": text, "output_ids": list(tokens.ids), "meta_info": meta}
        if self._parent.obj.return_prompt_token_ids:
            answer["prompt_token_ids"] = self._prompt.ids
        return answer

    def _weight_versions(self, tokens: Tokens) -> list[dict[str, Any]]:
        version = self._prompt.meta_info.get("weight_version")
        return [{"version": version, "start": 0, "end": len(tokens)}]

    def _add_logprobs(self, tokens: Tokens, meta: dict[str, Any]) -> None:
        obj = self._parent.obj
        if not obj.return_logprob:
            return
        manager = self._parent.manager
        meta.setdefault("input_token_logprobs", [])
        if obj.top_logprobs_num:
            meta.setdefault("input_top_logprobs", [])
        if obj.token_ids_logprob:
            meta.setdefault("input_token_ids_logprobs", [])
        meta["output_token_logprobs"] = manager.detokenize_logprob_tokens(
            tokens.log_p.tolist(), list(tokens.ids), obj.return_text_in_logprobs
        )
        meta["output_token_logprobs_length"] = len(tokens)
        if (asked := AlternativesRequest.of(manager, obj)) is not None:
            meta |= asked.written(manager, tokens, obj.return_text_in_logprobs)


class ChoiceStream:
    """Where the chunks of one answer go: a stream, in the form that the server streams, or nowhere.

    Args:
        emit: the stream; None without one.
        index: of the choice.
        incremental: the server streams deltas.
    """

    def __init__(self, emit: Emit | None, index: int, incremental: bool) -> None:
        self._emit, self._index, self._incremental = emit, index, incremental
        self._sent: Answer | None = None

    @property
    def open(self) -> bool:
        """Whether somebody listens."""
        return self._emit is not None

    @property
    def tokens(self) -> int:
        """How many tokens were handed on so far."""
        return 0 if self._sent is None else len(self._sent["output_ids"])

    def send(self, answer: Answer) -> None:
        """Hand on a chunk or the answer."""
        if self._emit is None:
            return
        self._emit(self._index, as_delta(self._sent, answer) if self._incremental else answer)
        self._sent = answer


def weight_version_of(manager: Any) -> str | None:
    """Return the version of the weights that a server serves, which chats and completions tell of any answer.

    SGLang 0.5.23 keeps it apart from the server's arguments, where older versions have it.
    """
    config_value = getattr(manager, "config_value", None)
    version: str | None = (
        manager.server_args.weight_version if config_value is None else config_value("weight_version")
    )
    return version


def empty_answer(manager: Any, rid: str, reason: dict[str, Any]) -> Answer:
    """Return the answer to a request that generated nothing, in SGLang's own form."""
    meta = {"id": rid, "finish_reason": reason, "prompt_tokens": 0, "completion_tokens": 0}
    meta |= {"weight_version": weight_version_of(manager)}
    meta |= {"cached_tokens": 0, "output_token_logprobs": [], "output_token_logprobs_length": 0}
    return {"text": "", "output_ids": [], "meta_info": meta}


def as_delta(previous: Answer | None, current: Answer) -> Answer:
    """A chunk as `--incremental-streaming-output` wants it: only what is new since `previous`."""
    if previous is None:
        return current
    seen = len(previous["output_ids"])
    meta = dict(current["meta_info"])
    for key in ("output_token_logprobs", "output_top_logprobs", "output_token_ids_logprobs"):
        if key in meta:
            meta[key] = meta[key][seen:]
    return {
        **current,
        "text": current["text"][len(previous["text"]) :],
        "output_ids": current["output_ids"][seen:],
        "meta_info": meta,
    }
