"""Reads answers out of token sequences of the served model: the Reader of `samplers.candidates`.

Offsets are those of the text that a client gets, so that spans can be shown to them. Tokenizer process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from sglang_power.algorithms.cot import GREEDY
from sglang_power.algorithms.engine import ContinuationCall, Engine
from sglang_power.answers import (
    Extracted,
    Extraction,
    Extractor,
    Spelled,
    Stem,
    align,
    spelled,
    stem,
)
from sglang_power.samplers.candidates import TIMED_OUT, ReadAnswer, Reading
from sglang_power.sglang_host.tokenizer.stopping import StopRule, TextRule
from sglang_power.types import Tokens

CONTINUATION_TOKENS = 32
"""Of the answer that a path is asked for."""

NO_ROOM = "the context has no room to ask for the answer"


class ContextEngine(Engine, Protocol):
    """An Engine that knows how many tokens the context has left behind its prompt."""

    @property
    def room(self) -> int:
        """Tokens, at least 0."""
        ...


class _Decoding:
    """Decodes as the request wants it.

    Args:
        stop, rule: when sequences end and how they are decoded.
    """

    def __init__(self, stop: StopRule, rule: TextRule) -> None:
        self._stop, self._rule = stop, rule

    def text(self, ids: Sequence[int], finished: bool) -> str:
        """What the client is given."""
        return self._rule.final_text(ids, self._stop.finish_reason(ids, finished))

    def _path(self, ids: Sequence[int], finished: bool) -> tuple[Spelled, Stem]:
        """All of the tokens, and what remains without the stop."""
        path = spelled(self._rule.decode, ids)
        matched = self._stop.finish_reason(ids, finished).get("matched")
        return path, stem(path, matched)


class HostReader(_Decoding):
    """Finds answers in the text.

    Args:
        stop, rule: when sequences end and how they are decoded.
        extractor: finds the answer in a text.
    """

    def __init__(self, stop: StopRule, rule: TextRule, extractor: Extractor) -> None:
        super().__init__(stop, rule)
        self._extractor = extractor

    async def answer(self, tokens: Tokens, finished: bool) -> Reading:
        """The answer inside a sequence."""
        path, rest = self._path(tokens.ids, finished)
        found: Extraction = await asyncio.to_thread(self._extractor.extract, rest.text)
        if not isinstance(found, Extracted):
            return Reading(None, note=None if found is None else TIMED_OUT)
        return Reading(ReadAnswer(found.value, found.span, path.tokens_of(found.span)))


class AskingReader(_Decoding):
    """Asks the model itself: appends a phrase to the path and reads the answer that follows.

    Args:
        stop, rule: when sequences end and how they are decoded.
        behind: gives an engine for what follows more tokens than the request's prompt. The phrase is part
            of what is asked, so stop strings are looked for in the model's own words only.
        seed: of the continuation.
    """

    def __init__(
        self, stop: StopRule, rule: TextRule, behind: Callable[[Sequence[int]], ContextEngine], seed: int
    ) -> None:
        super().__init__(stop, rule)
        self._behind, self._seed = behind, seed

    async def answer(self, tokens: Tokens, finished: bool) -> Reading:
        """The continuation's answer, aligned back to its last occurrence in the path.

        Where it does not occur there, the continuation's own tokens carry the confidence.
        """
        path, rest = self._path(tokens.ids, finished)
        phrase = self._rule.tokenizer.encode(rest.appended(), add_special_tokens=False)
        engine = self._behind([*tokens.ids[: rest.tokens], *phrase])
        if engine.room < 1:
            return Reading(None, note=NO_ROOM)
        call = ContinuationCall((), min(CONTINUATION_TOKENS, engine.room), GREEDY, self._seed)
        said = await engine.generate(call)
        saying, sentence = self._path(said.tokens.ids, said.finished)
        found = align(rest.text, sentence.text)
        if found is None:
            return Reading(None, said.usage)
        answer = found.answer
        if found.in_path:
            return Reading(ReadAnswer(answer.value, answer.span, path.tokens_of(answer.span)), said.usage)
        margins = tuple(float(said.tokens.margin[i]) for i in saying.tokens_of(answer.span))
        return Reading(ReadAnswer(answer.value, None, (), margins), said.usage)
