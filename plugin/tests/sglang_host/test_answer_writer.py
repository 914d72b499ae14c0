"""Streams and answers of one text: what was streamed begins the answer, whatever ends it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from naive_tree import config
from selection_cases import LastDigit
from sglang_power.algorithms.engine import ContinuationCall, RankedToken
from sglang_power.rng import Key
from sglang_power.samplers.budgets import Budget
from sglang_power.samplers.scores import Scores
from sglang_power.samplers.search import BranchSearch
from sglang_power.sglang_host.tokenizer.answer_writer import AnswerWriter, ChoiceStream
from sglang_power.sglang_host.tokenizer.stopping import StopRule, TextRule
from sglang_power.types import Continuation, Tokens, Usage
from stub_parent import PROMPT, Speller, StubParent

TEXT = "abracadabra"
IDS = Speller().encode(TEXT)
ROW = [-0.1, -0.1, 0.0, 0.1, 0.1, 0.9, 0.9]


class Scripted:
    """Continues with the text, which ends with a stop."""

    async def generate(self, call: ContinuationCall) -> Continuation:
        rest = IDS[len(call.prefix) :]
        return Continuation(Tokens.of(rest, [ROW] * len(rest)), True, False, Usage())

    async def most_likely(self, prefix: tuple[int, ...], count: int) -> tuple[list[RankedToken], Usage]:
        raise AssertionError((prefix, count))

    def share(self, wanted: int) -> int:
        return wanted


def writer_of(params: dict[str, Any]) -> AnswerWriter:
    parent = StubParent()
    parent.manager.incremental_streaming_output = True
    stop, text = StopRule.of(parent.manager, params), TextRule.of(parent.manager, params)
    return AnswerWriter(parent, PROMPT, stop, text)


STOPS = [
    ({"stop_token_ids": [IDS[-1]]}, "abracadabr"),
    ({"stop": ["dabra"]}, "abraca"),
    ({"stop": ["dabra", "xyz"]}, "abraca"),
    ({"stop": ["dabra"], "no_stop_trim": True}, TEXT),
    ({"stop_token_ids": [IDS[-1]], "no_stop_trim": True}, TEXT),
]


@pytest.mark.parametrize(("params", "expected"), STOPS, ids=str)
async def test_the_stream_of_a_search_is_its_answer(params: dict[str, Any], expected: str) -> None:
    """The last round is certain of a whole leaf, its stop included."""
    writer, chunks = writer_of(params), list[str]()
    stream = ChoiceStream(lambda _, answer: chunks.append(answer["text"]), 0, incremental=True)
    scores = Scores("mean_log_p", LastDigit())
    search = BranchSearch(
        Scripted(),
        config(),
        Key(1),
        scores,
        Budget(1000),
        lambda tokens: stream.send(writer.partial(tokens, {})),
    )
    (leaf,) = await search.run()
    final = writer.final(leaf.tokens, leaf.finished, {})
    stream.send(final)
    assert len(chunks) > 1
    assert "".join(chunks) == final["text"] == expected


@pytest.mark.parametrize(("params", "expected"), STOPS, ids=str)
def test_an_aborted_answer_that_had_ended_is_without_its_stop(params: dict[str, Any], expected: str) -> None:
    tokens = Tokens.of(IDS, np.zeros((len(IDS), 7)))
    assert writer_of(params).aborted(tokens, "aborted", {})["text"] == expected


@pytest.mark.parametrize("length", range(len(IDS)))
def test_unfinished_tokens_hold_back_what_may_become_a_stop(length: int) -> None:
    tokens = Tokens.of(IDS[:length], np.zeros((length, 7)))
    shown = writer_of({"stop": ["dabra"]}).partial(tokens, {})["text"]
    assert shown == TEXT[: max(length - len("dabra") + 1, 0)]
