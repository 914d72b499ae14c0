"""Children of one request, without a server: what they are asked for, and what is read from their answers.

SGLang is played by a script of tokens; a child ends where SGLang would end it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sglang_power.algorithms.cot import GREEDY
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.server.config import Limits
from sglang_power.sglang_host.child_params import META_KEY
from sglang_power.sglang_host.tokenizer.children import ChildEngine, Prompt
from sglang_power.sglang_host.tokenizer.parent import Parent
from sglang_power.sglang_host.tokenizer.reading import NO_ROOM, AskingReader
from sglang_power.sglang_host.tokenizer.stopping import StopRule, TextRule
from sglang_power.types import ROW_FIELDS, ProposalLaw, Tokens, Usage

END = 127


class Characters:
    """A tokenizer with one token per ASCII character; token 127 ends."""

    eos_token_id = END

    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(chr(token) for token in ids if token != END)


MANAGER = SimpleNamespace(
    tokenizer=Characters(),
    model_config=SimpleNamespace(hf_eos_token_id=[END]),
    context_len=256,
    num_reserved_tokens=0,
    max_req_input_len=250,
)
PROMPT = Prompt(Characters().encode("2+2="), {"cached_tokens": 0}, Usage())


class ScriptedParent(Parent):
    """Every child says `says`, up to a stop string in its own words, its end, or its length."""

    def __init__(self, says: str, **params: Any) -> None:
        obj = SimpleNamespace(rid="r", sampling_params=params, background=False)
        super().__init__(MANAGER, lambda *_: None, obj, None, Limits())
        self._says = [*Characters().encode(says), END]
        self.children: list[Any] = []

    async def run(self, child: Any, _: float | None = None) -> dict[str, Any]:
        self.children.append(child)
        asked, stop = child.sampling_params, StopRule.of(MANAGER, child.sampling_params)
        said = self._says[: asked["max_new_tokens"]]
        unstoppable = asked["min_new_tokens"]
        said = said[
            : next((n for n in range(unstoppable + 1, len(said)) if stop.stops_at(said, n)), len(said))
        ]
        finished = stop.stops_at(said, len(said))
        matched = {"type": "stop", "matched": stop.string_at(said, len(said)) or said[-1]}
        reason = matched if finished else {"type": "length", "length": len(said)}
        rows = np.zeros((len(said), len(ROW_FIELDS))).tolist()
        meta = {"finish_reason": reason, "prompt_tokens": len(child.input_ids), META_KEY: rows}
        return {"output_ids": said, "meta_info": meta}


def engine(parent: ScriptedParent) -> ChildEngine:
    return ChildEngine(parent, PROMPT, StopRule.of(MANAGER, parent.params), None)


async def test_the_prefix_of_a_call_counts_for_stop_strings_and_what_lies_behind_does_not() -> None:
    """A sequence of an answer stops where SGLang would stop it as a whole; a prompt never stops anything."""
    parent = ScriptedParent("lo there", stop=["hello"])
    prefix = tuple(Characters().encode("hel"))
    across = await engine(parent).generate(ContinuationCall(prefix, 20, GREEDY, 1))
    assert (len(across.tokens), across.finished) == (2, True)
    behind = await engine(parent).behind(prefix).generate(ContinuationCall((), 20, GREEDY, 1))
    assert (len(behind.tokens), behind.finished) == (len("lo there") + 1, True)
    assert [child.input_ids for child in parent.children] == [[*PROMPT.ids, *prefix]] * 2


async def test_only_what_belongs_to_the_answer_counts_for_min_new_tokens() -> None:
    parent = ScriptedParent("abc", min_new_tokens=5)
    await engine(parent).generate(ContinuationCall((1, 2), 20, GREEDY, 1))
    await engine(parent).behind((1, 2)).generate(ContinuationCall((), 20, GREEDY, 1))
    assert [child.sampling_params["min_new_tokens"] for child in parent.children] == [3, 0]


@pytest.mark.parametrize("stop", [None, "answer", "is", "So", ["the", "answer is"], "is four", " is f", "\n"])
async def test_a_stop_string_in_the_phrase_leaves_the_asked_answer_whole(stop: Any) -> None:
    """`So the answer is` is part of what is asked: no stop that begins in it was said by the model."""
    parent = ScriptedParent(" four.\nSo it is.", stop=stop)
    rule, text = StopRule.of(MANAGER, parent.params), TextRule.of(MANAGER, parent.params)
    reader = AskingReader(rule, text, engine(parent).behind, seed=3)
    path = Characters().encode("two and two are four")
    reading = await reader.answer(Tokens.of(path, np.zeros((len(path), len(ROW_FIELDS)))), finished=False)
    assert reading.answer is not None
    assert reading.answer.value == "four"
    assert reading.answer.tokens == tuple(range(16, 20)), "aligned to its place in the path"
    asked = Characters().decode(parent.children[0].input_ids)
    assert asked == "2+2=two and two are four So the answer is"


async def test_a_stop_string_in_the_models_own_words_still_ends_them() -> None:
    parent = ScriptedParent(" four, or so", stop=",")
    rule, text = StopRule.of(MANAGER, parent.params), TextRule.of(MANAGER, parent.params)
    reading = await AskingReader(rule, text, engine(parent).behind, seed=3).answer(Tokens.EMPTY, False)
    assert reading.answer is not None
    assert reading.answer.value == "four"
    assert reading.usage.decoded == len(" four,")


# --- near the end of the context ----------------------------------------------------------------------


async def test_a_child_whose_prompt_would_be_too_long_begins_earlier_and_says_the_same() -> None:
    """SGLang takes prompts of at most 249 tokens here, and lets answers run to 254."""
    parent = ScriptedParent("x" * 60)
    long = Prompt([1] * 200, {"cached_tokens": 0}, Usage())
    engine = ChildEngine(parent, long, StopRule.of(MANAGER, {}), None)
    prefix = tuple([120] * 52)
    call = ContinuationCall(prefix, 54, ProposalLaw(1.0), seed=1)
    assert (engine.overhang(call), engine.room) == (3, 54)
    whole = await engine.generate(call)
    child = parent.children[0]
    assert len(child.input_ids) == 249
    assert child.sampling_params["max_new_tokens"] == 5
    assert child.sampling_params["custom_params"]["forced"] == [120] * 3
    assert len(whole.tokens) == 2


async def test_a_prompt_that_fills_the_context_leaves_nothing_to_ask() -> None:
    parent = ScriptedParent("4.")
    full = ChildEngine(parent, Prompt([1] * 245, {}, Usage()), StopRule.of(MANAGER, {}), None)
    text = TextRule.of(MANAGER, {})
    reading = await AskingReader(StopRule.of(MANAGER, {}), text, full.behind, seed=3).answer(
        Tokens.EMPTY, False
    )
    assert reading.answer is None
    assert reading.note == NO_ROOM
    assert not parent.children
