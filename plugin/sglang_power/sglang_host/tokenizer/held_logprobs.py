"""Log probabilities of OpenAI streams: they wait for text, since SGLang's chat stream drops them without.

A chunk may have tokens and no new text: text is held back where it may begin a stop string or a character,
and stops have none. SGLang's chat route (0.5.20 to 0.5.23) sends no event for such a chunk and counts its log
probabilities as sent. Tokenizer process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

LOGPROBS = ("output_token_logprobs", "output_top_logprobs", "output_token_ids_logprobs")
_COUNT = "output_token_logprobs_length"

Answer = dict[str, Any]


class HeldLogprobs:
    """The chunks of one choice.

    Args:
        incremental: the server streams deltas.

    Attributes:
        owed: log probabilities that came with the last chunk, where that has no new text; by SGLang's names.
        total: how many the whole answer has.
    """

    def __init__(self, incremental: bool) -> None:
        self._incremental = incremental
        self._characters = 0
        self._held: dict[str, list[Any]] = {}
        self.owed: dict[str, list[Any]] = {}
        self.total = 0

    def __call__(self, chunk: Answer) -> Answer:
        """Return a chunk as it is to be sent: all that was held back comes with the next new text."""
        meta = chunk["meta_info"]
        if _COUNT not in meta:
            return chunk
        self._hold(meta)
        has_text = len(chunk["text"]) > (0 if self._incremental else self._characters)
        self._characters = len(chunk["text"])
        if has_text or meta["finish_reason"] is not None:
            return self._released(chunk, has_text)
        sent = self.total - self._held_count
        shortened = {key: [] if self._incremental else meta[key][:sent] for key in self._held}
        return {**chunk, "meta_info": {**meta, **shortened, _COUNT: sent}}

    @property
    def _held_count(self) -> int:
        return len(self._held[LOGPROBS[0]])

    def _hold(self, meta: dict[str, Any]) -> None:
        """Hold what is new; SGLang's own lists may have grown since a chunk of its was made."""
        seen, self.total = self.total, int(meta[_COUNT])
        new = slice(None) if self._incremental else slice(seen, self.total)
        for key in LOGPROBS:
            if key in meta:
                self._held.setdefault(key, []).extend(meta[key][new])

    def _released(self, chunk: Answer, has_text: bool) -> Answer:
        held, self._held = self._held, {}
        if not has_text:
            self.owed = held
        if not self._incremental:
            return chunk
        return {**chunk, "meta_info": {**chunk["meta_info"], **held}}


class ChatLogprobs:
    """The log probabilities in the chunks of a chat stream; the last chunk of a choice gets what had no text.

    Args:
        serving: SGLang's OpenAIServingChat, which writes them; its completions drop none.
        held: of each choice.
    """

    def __init__(self, serving: Any, held: Mapping[int, HeldLogprobs]) -> None:
        self._serving, self._held = serving, held
        self._sent = Counter[int]()

    def complete(self, choices: Sequence[dict[str, Any]]) -> bool:
        """Count those in the choices of a chunk, and add what is missing at their ends; True if any was."""
        added = False
        for choice in choices:
            if "delta" not in choice:
                continue
            index = choice["index"]
            self._sent[index] += len((choice.get("logprobs") or {}).get("content") or ())
            held = self._held.get(index)
            if held is None or not (choice.get("finish_reason") and held.owed):
                continue
            if self._sent[index] < held.total:  # with a parser, SGLang sends them by themselves
                written = self._serving._process_response_logprobs({"meta_info": held.owed})
                choice["logprobs"], added = written.model_dump(), True
        return added
