"""Calls that the server ends for reasons of its own: resumed, or refused, never blamed on a deadline."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from scripted_children import END, Characters, ScriptedParent, engine
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.engines.tabular import TabularEngine
from sglang_power.errors import HostError
from sglang_power.samplers.budgets import Budget, late
from sglang_power.samplers.candidates import stopped_by
from sglang_power.sglang_host.child_params import META_KEY
from sglang_power.types import Continuation, ProposalLaw
from stub_parent import MODEL, selected

TEXT = "abcdefghij"
IDS = (*Characters().encode(TEXT), END)


class ShortServer(ScriptedParent):
    """Ends every child after a few tokens, as a pool of KV slots that is smaller than the context does."""

    def __init__(self, at_most: int) -> None:
        super().__init__(TEXT)
        self._at_most, self._text = at_most, self._says

    async def run(self, child: Any, *_: Any) -> dict[str, Any]:
        done = len(child.input_ids) - len(Characters().encode("2+2="))
        self._says = self._text[done:]
        out = await super().run(child)
        if len(out["output_ids"]) > self._at_most:
            out["output_ids"] = out["output_ids"][: self._at_most]
            out["meta_info"][META_KEY] = out["meta_info"][META_KEY][: self._at_most]
            out["meta_info"]["finish_reason"] = {"type": "length", "length": self._at_most}
        return out


@pytest.mark.parametrize("at_most", [1, 3, 5])
async def test_a_child_that_the_server_ended_early_is_resumed(at_most: int) -> None:
    parent = ShortServer(at_most)
    whole = await engine(parent).generate(ContinuationCall((), 20, ProposalLaw(1.0), seed=1))
    assert whole.tokens.ids == IDS
    assert (whole.finished, whole.cut_short) == (True, False)
    assert len(parent.children) == -(-len(IDS) // at_most)


async def test_a_server_that_gives_no_token_fails_the_request() -> None:
    with pytest.raises(HostError, match="ends answers of 20 tokens after 0"):
        await engine(ShortServer(0)).generate(ContinuationCall((), 20, ProposalLaw(1.0), seed=1))


class Breaking(TabularEngine):
    """Breaks off calls, although neither a rule nor a deadline says so."""

    async def generate(self, call: ContinuationCall) -> Continuation:
        assert call.deadline is None
        whole = await super().generate(call)
        return dataclasses.replace(whole, finished=False, cut_short=True)


@pytest.mark.parametrize(
    "asked",
    [
        {"sampler": "vote", "samples": 3, "answer": "text"},
        {"sampler": "best_of", "samples": 3, "answer": "text"},
        {"sampler": "cot", "k": 2, "answer": "text"},
    ],
    ids=str,
)
async def test_no_answer_says_that_a_deadline_ended_it_which_it_does_not_have(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    with pytest.raises(HostError, match="without a deadline"):
        await selected(monkeypatch, asked, engine=Breaking(MODEL))


def test_the_deadline_is_named_only_where_there_is_one() -> None:
    assert late(1.0) == stopped_by(False, True, 1.0) == "deadline_ms"
    assert stopped_by(True, True, None) == "abort"
    assert stopped_by(False, False, None) == "completed"
    assert Budget(10, deadline=None).spent_by(steps=0, tokens=0, next_tokens=1) is None
    assert Budget(10, deadline=1.0).spent_by(steps=0, tokens=0, next_tokens=1) == "deadline_ms"
    with pytest.raises(HostError):
        late(None)
    with pytest.raises(HostError):
        stopped_by(False, True, None)
