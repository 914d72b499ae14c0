"""Tabular models, samplers and an extractor that tests of selections share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang_power.algorithms.cot import CotConfig
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.answers import equivalence
from sglang_power.engines.tabular import TabularEngine, TabularModel
from sglang_power.errors import ChainAbortedError
from sglang_power.rng import Key
from sglang_power.samplers.candidates import ReadAnswer, Reading
from sglang_power.samplers.cot import Cot
from sglang_power.types import Continuation, Tokens, Usage

L = 4


MODEL = TabularModel.random(11, vocab=3, horizon=L, concentration=0.7)


EXACT = equivalence("exact")


SAMPLING = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.0}


class LastDigit:
    """The answer is the last token before the stop; a bare stop has none."""

    def text(self, ids: Sequence[int], finished: bool) -> str:
        return "".join(map(str, ids[:-1] if finished else ids))

    async def answer(self, tokens: Tokens, finished: bool) -> Reading:
        at = len(tokens) - (2 if finished else 1)
        if at < 0:
            return Reading(None, Usage(decoded=1))
        return Reading(ReadAnswer(str(tokens.ids[at]), (at, at + 1), (at,)), Usage(decoded=1))


def cot(seed: int = 1, model: TabularModel = MODEL, **options: Any) -> Cot:
    config = CotConfig(options.pop("k", 3), model.horizon, min_first_p=options.pop("min_first_p", 0.0))
    options.setdefault("aggregate", True)
    return Cot(TabularEngine(model), LastDigit(), EXACT, config, Key(seed), **options)


class AbortedAfter(TabularEngine):
    """Aborts every call but the first few."""

    def __init__(self, model: TabularModel, calls: int) -> None:
        super().__init__(model)
        self._left = calls

    async def generate(self, call: ContinuationCall) -> Continuation:
        self._left -= 1
        if self._left < 0:
            raise ChainAbortedError("aborted")
        return await super().generate(call)
