"""Children of one request, without a server: what they are asked for, and what is read from their answers.

SGLang is played by a script of tokens; a child ends where SGLang would end it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scripted_children import END, MANAGER, PROMPT, Characters, ScriptedParent, engine
from sglang_power.algorithms.cot import GREEDY
from sglang_power.algorithms.engine import ContinuationCall, Recall
from sglang_power.server.config import ServerConfig
from sglang_power.sglang_host.child_params import META_KEY
from sglang_power.sglang_host.tokenizer.alternatives import AlternativesRequest
from sglang_power.sglang_host.tokenizer.answer_writer import AnswerWriter
from sglang_power.sglang_host.tokenizer.children import ChildEngine, Prompt
from sglang_power.sglang_host.tokenizer.host import Host
from sglang_power.sglang_host.tokenizer.parent import Parent
from sglang_power.sglang_host.tokenizer.reading import NO_ROOM, AskingReader
from sglang_power.sglang_host.tokenizer.stopping import StopRule, TextRule
from sglang_power.types import ROW_FIELDS, Alternatives, ProposalLaw, Tokens, Usage
from stub_parent import StubManager


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


# --- what is asked beside the tokens ------------------------------------------------------------------

BESIDE = {"return_logprob": True, "top_logprobs_num": 3, "token_ids_logprob": [5, 9]}


async def test_alternatives_come_with_the_tokens_of_every_child() -> None:
    """From the rows that they were drawn from: no further pass, also where a child was resumed."""
    parent = ScriptedParent("lo", BESIDE, stop=["xhel"])
    prefix = tuple(Characters().encode("hel"))
    found = await engine(parent).generate(ContinuationCall(prefix, 20, GREEDY, 1))
    beside = found.tokens.alternatives
    assert beside is not None
    assert found.tokens.ids == (*Characters().encode("lo"), END)
    assert beside.top_ids.tolist() == [[token, token + 1, token + 2] for token in found.tokens.ids]
    assert beside.top_log_p.tolist() == [[0.0, -0.125, -0.25]] * 3
    assert beside.named_log_p.tolist() == [[-token / 4] * 2 for token in found.tokens.ids]
    assert len(parent.children) == 1


async def test_a_child_that_begins_earlier_leaves_its_known_tokens_out() -> None:
    parent = ScriptedParent("hello", BESIDE)
    one = engine(parent)
    call = ContinuationCall(tuple(Characters().encode("he")), 20, GREEDY, 1)
    read = one.read(call, await parent.run(one.child(call, known=2)), known=2)
    assert read.tokens.ids == (*Characters().encode("llo"), END)
    assert read.tokens.alternatives is not None
    assert read.tokens.alternatives.top_ids[:, 0].tolist() == list(read.tokens.ids)


async def test_an_aborted_child_keeps_what_has_arrived_of_everything() -> None:
    parent = ScriptedParent("hello", BESIDE)
    one, call = engine(parent), ContinuationCall((), 20, GREEDY, 1)
    out = await parent.run(one.child(call))
    out["meta_info"]["finish_reason"] = {"type": "abort"}
    del out["meta_info"]["output_top_logprobs"][3:]
    read = one.read(call, out)
    assert read.tokens.ids == tuple(Characters().encode("hel"))
    assert read.tokens.alternatives is not None
    assert len(read.tokens.alternatives) == 3


@pytest.mark.parametrize(
    "beside",
    [
        {**BESIDE, "return_logprob": False},
        {"return_logprob": True, "top_logprobs_num": 0, "token_ids_logprob": None},
    ],
)
async def test_nobody_asks_and_nothing_is_computed(beside: dict[str, Any]) -> None:
    parent = ScriptedParent("lo", beside)
    found = await engine(parent).generate(ContinuationCall((), 20, GREEDY, 1))
    assert found.tokens.alternatives is None
    assert parent.children[0].return_logprob is False


async def test_the_model_is_asked_for_its_answer_without_alternatives() -> None:
    parent = ScriptedParent(" four.", BESIDE)
    await engine(parent).behind((1, 2)).generate(ContinuationCall((), 20, GREEDY, 1))
    assert parent.children[0].return_logprob is False


def test_no_more_alternatives_than_the_vocabulary_has() -> None:
    obj = SimpleNamespace(return_logprob=True, top_logprobs_num=500, token_ids_logprob=None)
    assert AlternativesRequest.of(MANAGER, obj) == AlternativesRequest(128, ())


def generated(first: int, count: int) -> Tokens:
    ids = list(range(first, first + count))
    beside = Alternatives(
        np.array(ids, np.int32)[:, None], np.zeros((count, 1), np.float32), np.zeros((count, 0), np.float32)
    )
    return Tokens.of(ids, np.zeros((count, len(ROW_FIELDS))), beside)


@pytest.mark.parametrize("cut", range(5))
def test_alternatives_stay_with_their_tokens(cut: int) -> None:
    """What a step keeps and what it puts behind: rows of several children, in the order of the answer."""
    whole = generated(10, 4).first(cut) + generated(50, 3)
    assert whole.alternatives is not None
    assert whole.alternatives.top_ids[:, 0].tolist() == list(whole.ids)
    for part in (whole.after(2), whole.first(2), Tokens.EMPTY + whole, whole + Tokens.EMPTY):
        assert part.alternatives is not None
        assert part.alternatives.top_ids[:, 0].tolist() == list(part.ids)
    assert whole.first(0).alternatives is None
    assert (whole.first(0) + Tokens.EMPTY).alternatives is None


def written(tokens: Tokens, how: str, **beside: Any) -> dict[str, Any]:
    parent = ScriptedParent("", {**BESIDE, **beside})
    parent.obj.return_text_in_logprobs, parent.obj.return_prompt_token_ids = True, False
    parent.manager = SimpleNamespace(
        **vars(MANAGER),
        detokenize_logprob_tokens=lambda log_p, ids, text: [
            (value, token, chr(token) if text else None) for value, token in zip(log_p, ids, strict=True)
        ],
    )
    rules = StopRule.of(MANAGER, parent.params), TextRule.of(MANAGER, parent.params)
    writer = AnswerWriter(parent, PROMPT, *rules)
    answers = {
        "final": lambda: writer.final(tokens, False, {}),
        "aborted": lambda: writer.aborted(tokens, "gone", {}),
        "partial": lambda: writer.partial(tokens, {}),
    }
    meta: dict[str, Any] = answers[how]()["meta_info"]
    return meta


@pytest.mark.parametrize("how", ["final", "aborted", "partial"])
async def test_answers_chunks_and_what_an_abort_leaves_have_the_same_fields(how: str) -> None:
    one = engine(ScriptedParent("hey", BESIDE))
    tokens = (await one.generate(ContinuationCall((), 3, GREEDY, 1))).tokens
    meta = written(tokens, how)
    assert [row[1][1:] for row in meta["output_top_logprobs"]] == [(105, "i"), (102, "f"), (122, "z")]
    assert [len(row) for row in meta["output_top_logprobs"]] == [3, 3, 3]
    assert [[entry[1] for entry in row] for row in meta["output_token_ids_logprobs"]] == [[5, 9]] * 3
    assert len(meta["output_token_logprobs"]) == 3
    nothing = written(Tokens.EMPTY, how)
    assert (nothing["output_top_logprobs"], nothing["output_token_ids_logprobs"]) == ([], [])
    assert "output_top_logprobs" not in written(tokens.first(0), how, top_logprobs_num=0)


# --- calls that are recalled --------------------------------------------------------------------------


async def test_a_call_that_was_recalled_before_it_began_asks_for_nothing() -> None:
    parent, recall = ScriptedParent("hello"), Recall()
    recall.ask()
    answer = await engine(parent).generate(ContinuationCall((), 20, GREEDY, 1, recall=recall))
    assert (len(answer.tokens), answer.cut_short, answer.usage) == (0, True, Usage())
    assert not parent.children


async def test_a_child_that_is_recalled_answers_with_what_it_has_and_is_told_until_it_does() -> None:
    told: list[str] = []
    begun, ended = asyncio.Event(), asyncio.Event()

    def dispatched(request: Any) -> None:
        told.append(request.rid)
        if len(told) == 2:  # the first one came before the child
            ended.set()

    async def original(_: Any, child: Any, __: Any) -> AsyncIterator[dict[str, Any]]:
        begun.set()
        await ended.wait()
        meta = {
            "id": child.rid,
            "finish_reason": {"type": "abort"},
            "prompt_tokens": 6,
            META_KEY: [[0.0] * len(ROW_FIELDS)] * 3,
        }
        yield {"output_ids": [1, 2, 3], "meta_info": meta}

    manager = StubManager(**vars(MANAGER), _dispatch_to_scheduler=dispatched)
    obj = SimpleNamespace(
        rid="r", sampling_params={}, background=False, return_logprob=False, top_logprobs_num=0
    )
    parent = Parent(Host(manager, original, obj, None, ServerConfig()))
    recall = Recall()
    call = ContinuationCall((5, 6), 20, GREEDY, 1, recall=recall)
    children = ChildEngine(parent, PROMPT, StopRule.of(MANAGER, {}), None)
    running = asyncio.create_task(children.generate(call))
    await begun.wait()
    recall.ask()
    answer = await running
    assert told == ["r.000000"] * 2
    assert (answer.tokens.ids, answer.finished, answer.cut_short) == ((1, 2, 3), False, True)
    assert answer.usage == Usage(decoded=3, prefilled=6, depth=4, children=1)
    await asyncio.sleep(0)
    assert not parent._timers
