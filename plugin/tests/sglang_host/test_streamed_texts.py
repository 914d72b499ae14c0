"""What a stream's reader puts together: texts on Ollama's routes, log probabilities on OpenAI's."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace
from typing import Any

import pytest
from sglang_power.sglang_host.tokenizer.held_logprobs import LOGPROBS, ChatLogprobs, HeldLogprobs
from sglang_power.sglang_host.tokenizer.ollama import OllamaChunks

Chunk = dict[str, Any]


def chunks_of(lengths: list[tuple[int, int]], incremental: bool, *, logprobs: bool = True) -> list[Chunk]:
    """The chunks of a stream: (tokens, characters) so far at each of them; the last one ends it."""
    made, before = [], (0, 0)
    for number, (tokens, characters) in enumerate(lengths):
        start, at = before if incremental else (0, 0)
        meta: dict[str, Any] = {"finish_reason": {"type": "stop"} if number == len(lengths) - 1 else None}
        if logprobs:
            entries = [(-i / 8, i, None) for i in range(start, tokens)]
            meta |= {"output_token_logprobs": entries, "output_token_logprobs_length": tokens}
            meta["output_top_logprobs"] = [[entry] for entry in entries]
        text = "".join(chr(97 + i % 26) for i in range(at, characters))
        made.append({"text": text, "output_ids": list(range(start, tokens)), "meta_info": meta})
        before = tokens, characters
    return made


def chat(chunks: list[Chunk], incremental: bool) -> list[list[Any]]:
    """The rows that SGLang's chat stream sends with each chunk that has new text, and drops without.

    As OpenAIServingChat does it: it takes what is behind the count of the chunk before.
    """
    counted, characters, sent = 0, 0, []
    for chunk in chunks:
        meta, total = chunk["meta_info"], chunk["meta_info"]["output_token_logprobs_length"]
        rows = []
        if counted < total:
            new = slice(None) if incremental else slice(counted, total)
            rows = [meta["output_token_logprobs"][new], meta["output_top_logprobs"][new]]
        counted = total
        if len(chunk["text"]) > (0 if incremental else characters):
            sent.append(rows)
        characters = len(chunk["text"])
    return sent


STREAMS = [
    [(2, 2), (4, 2), (6, 6), (8, 6), (9, 6)],  # text is held back, and the last chunk has none
    [(2, 0), (4, 0), (4, 0)],  # never any text
    [(1, 1), (2, 2), (3, 3)],
    [(8, 0), (16, 9)],
    [(1, 0)],
]


def random_stream(seed: int) -> list[tuple[int, int]]:
    draw = random.Random(seed)
    steps = [(draw.randrange(3), draw.choice([0, 0, 1, 4])) for _ in range(draw.randrange(1, 9))]
    return list(zip(*(itertools.accumulate(each) for each in zip(*steps, strict=True)), strict=True))


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("lengths", STREAMS + [random_stream(seed) for seed in range(40)], ids=str)
def test_the_log_probabilities_of_all_chunks_are_those_of_the_answer(
    lengths: list[tuple[int, int]], incremental: bool
) -> None:
    held = HeldLogprobs(incremental)
    sent = [held(chunk) for chunk in chunks_of(lengths, incremental)]
    whole = chunks_of(lengths, False)[-1]["meta_info"]
    rows = [row for row in chat(sent, incremental) if row]
    for i, key in enumerate(LOGPROBS[:2]):
        found = [entry for row in rows for entry in row[i]] + held.owed.get(key, [])
        assert found == whole[key]
    assert [chunk["output_ids"] for chunk in sent] == [
        chunk["output_ids"] for chunk in chunks_of(lengths, incremental)
    ]


def test_without_it_they_are_not() -> None:
    """The control: SGLang's own chunks lose what has no text."""
    rows = chat(chunks_of(STREAMS[0], False), False)
    assert sum(len(row[0]) for row in rows) == 4, "of 9"


def test_what_nobody_asked_for_is_not_held() -> None:
    (chunk,) = chunks_of([(2, 0)], False, logprobs=False)
    assert HeldLogprobs(False)(chunk) is chunk


@pytest.mark.parametrize(("sent_before", "added"), [(4, True), (9, False)])
def test_the_end_of_a_choice_has_what_no_text_came_with(sent_before: int, added: bool) -> None:
    """Once: with a parser SGLang sends them by themselves."""
    held = HeldLogprobs(False)
    for chunk in chunks_of(STREAMS[0], False):
        held(chunk)
    serving = SimpleNamespace(
        _process_response_logprobs=lambda ret: SimpleNamespace(model_dump=lambda: ret["meta_info"])
    )
    logprobs = ChatLogprobs(serving, {0: held})
    before = {"index": 0, "delta": {"content": "ab"}, "logprobs": {"content": [{}] * sent_before}}
    assert not logprobs.complete([before])
    last: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": "stop", "logprobs": None}
    assert logprobs.complete([last]) is added
    if added:
        assert [entry[1] for entry in last["logprobs"]["output_token_logprobs"]] == [6, 7, 8]
    assert not logprobs.complete([{"index": 1, "text": "", "finish_reason": "stop"}]), "completions drop none"


def read_by_ollama(chunks: list[Chunk]) -> str:
    """What SGLang's Ollama routes send: new text of cumulative ones, and none of the last."""
    previous, said = "", ""
    for chunk in chunks:
        if chunk["meta_info"]["finish_reason"] is None:
            said += chunk["text"][len(previous) :]
        previous = chunk["text"]
    return said


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("lengths", STREAMS + [random_stream(seed) for seed in range(20)], ids=str)
def test_ollamas_readers_get_the_whole_text(lengths: list[tuple[int, int]], incremental: bool) -> None:
    rewritten = OllamaChunks(incremental)
    sent = [each for chunk in chunks_of(lengths, incremental) for each in rewritten(chunk)]
    assert read_by_ollama(sent) == chunks_of(lengths, False)[-1]["text"]
    ends = [chunk["meta_info"]["finish_reason"] is not None for chunk in sent]
    assert ends == [False] * (len(sent) - 1) + [True]
