"""When a sequence of token ids has stopped, and what its text is. Tokenizer process.

A child sees its prefix as prompt, so it cannot see a stop string that spans the cut. This module decides
on whole sequences instead, with SGLang's own rule: a stop string stops at the first token after which the
decoded tail contains it (schedule_batch.Req, 0.5.20 to 0.5.23).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StopRule:
    """Stops of one request.

    Args:
        tokenizer: of the served model.
        strings: stop strings.
        tokens: ids that end a sequence; empty under ignore_eos, as in SGLang.
        tail: tokens that can cover the longest stop string.
    """

    tokenizer: Any
    strings: tuple[str, ...]
    tokens: frozenset[int]
    tail: int

    @classmethod
    def of(cls, manager: Any, params: Mapping[str, Any]) -> StopRule:
        """The rule that SGLang applies for these sampling parameters."""
        tokenizer = manager.tokenizer
        stop = params.get("stop") or ()
        strings = (stop,) if isinstance(stop, str) else tuple(stop)
        longest = max((len(tokenizer.encode(s, add_special_tokens=False)) for s in strings), default=0)
        tokens: set[int] = set()
        if not params.get("ignore_eos"):
            eos = manager.model_config.hf_eos_token_id or ()
            tokens |= {eos} if isinstance(eos, int) else set(eos)
            tokens |= {int(t) for t in params.get("stop_token_ids") or ()}
            tokens |= {int(t) for t in getattr(tokenizer, "additional_stop_token_ids", None) or ()}
            if tokenizer.eos_token_id is not None:
                tokens.add(tokenizer.eos_token_id)
        return cls(tokenizer, strings, frozenset(tokens), longest + 1)

    def first_stop(self, ids: Sequence[int], start: int) -> int | None:
        """The smallest length > start at which `ids` has stopped."""
        lengths = range(start + 1, len(ids) + 1)
        return next((length for length in lengths if self.stops_at(ids, length)), None)

    def stops_at(self, ids: Sequence[int], length: int) -> bool:
        """Whether the first `length` ids, at least one, end with a stop."""
        return ids[length - 1] in self.tokens or self.string_at(ids, length) is not None

    def string_at(self, ids: Sequence[int], length: int) -> str | None:
        """The stop string that the tail of the first `length` ids contains."""
        if not self.strings:
            return None
        text = self.tokenizer.decode(list(ids[max(0, length - self.tail) : length]))
        return next((s for s in self.strings if s in text), None)

    def finish_reason(self, ids: Sequence[int], finished: bool) -> dict[str, Any]:
        """SGLang's finish_reason for a whole sequence."""
        if not finished:
            return {"type": "length", "length": len(ids)}
        return {"type": "stop", "matched": self.string_at(ids, len(ids)) or ids[-1]}


@dataclass(frozen=True)
class TextRule:
    """How a request wants its ids decoded."""

    tokenizer: Any
    skip_special_tokens: bool
    spaces_between_special_tokens: bool
    no_stop_trim: bool

    @classmethod
    def of(cls, manager: Any, params: Mapping[str, Any]) -> TextRule:
        """From SGLang's sampling parameters and their defaults."""

        def flag(name: str, default: bool) -> bool:
            value = params.get(name)
            return default if value is None else bool(value)

        return cls(
            manager.tokenizer,
            flag("skip_special_tokens", True),
            flag("spaces_between_special_tokens", True),
            flag("no_stop_trim", False),
        )

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, all at once: decoding pieces breaks at byte and merge boundaries."""
        return str(
            self.tokenizer.decode(
                list(ids),
                skip_special_tokens=self.skip_special_tokens,
                spaces_between_special_tokens=self.spaces_between_special_tokens,
            )
        )

    def final_text(self, ids: Sequence[int], finish_reason: Mapping[str, Any]) -> str:
        """The answer's text, with its stop trimmed unless the request keeps it."""
        matched = finish_reason.get("matched")
        if isinstance(matched, int) and not self.no_stop_trim:
            return self.decode(ids[:-1])
        text = self.decode(ids)
        if isinstance(matched, str) and (at := text.find(matched)) >= 0:
            return text[: at + len(matched)] if self.no_stop_trim else text[:at]
        return text
