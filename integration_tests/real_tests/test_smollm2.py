"""A real model through the server: its chat template, its ends, long characters, log p, samplers.

Log probabilities are compared with those of transformers on the same weights, both in float32: they differ by
the order of sums alone. TOLERANCE is thirty times what was seen on a CPU. Error rate 0.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final

import pytest
from sglang_power.reports import report_of

from integration_tests.helpers.clients import (
    client,
    events,
    generate,
    post,
    power_of,
    raw_generate,
    sse_lines,
)
from integration_tests.real.asking import QUESTIONS, Question, ask
from integration_tests.real.catalogue import SMOLLM2
from integration_tests.real_tests.conftest import Reference
from integration_tests.server import Server

pytestmark = pytest.mark.server

TOLERANCE: Final = 1e-3
"""Nats, of one token's log probability."""

SHORT_CHAIN: Final[dict[str, Any]] = {"sampler": "power", "block_size": 12, "steps": 2, "seed": 5}
CHAT: Final = "/v1/chat/completions"
FOX: Final = "🦊"
"""Several tokens of SmolLM2, none of which is text by itself."""

FOXES: Final = f"A row of foxes: {FOX * 12}"
QUESTION: Final = "Name three colours of the rainbow, in one line."

CHATS: Final = {
    "no system message": [{"role": "user", "content": "Hello!"}],
    "a system message": [
        {"role": "system", "content": "Answer in French."},
        {"role": "user", "content": "Hello!"},
    ],
    "several turns": [
        {"role": "user", "content": "My name is Zoë."},
        {"role": "assistant", "content": "Hello Zoë."},
        {"role": "user", "content": "What is my name?"},
    ],
}


def asked(server: Server, messages: list[dict[str, str]], **fields: Any) -> dict[str, Any]:
    """Return the answer to a chat, checked for HTTP 200."""
    response = post(server, CHAT, {"model": SMOLLM2.name, "messages": messages, **fields}, timeout=600.0)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


# --- chat template and stops ---


@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
@pytest.mark.parametrize("custom_params", [None, SHORT_CHAIN], ids=["plain", "power"])
def test_a_chat_is_written_by_the_models_own_template(
    smollm2: Server, reference: Reference, chat: list[dict[str, str]], custom_params: dict[str, Any] | None
) -> None:
    named = {} if custom_params is None else {"custom_params": custom_params}
    answer = asked(smollm2, chat, max_tokens=2, return_prompt_token_ids=True, **named)
    ids = answer["choices"][0]["prompt_token_ids"]
    assert ids == reference.template(chat)
    assert answer["usage"]["prompt_tokens"] == len(ids)


def test_the_template_is_the_published_one(reference: Reference) -> None:
    text = reference.tokenizer.decode(reference.template(CHATS["no system message"]))
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    "custom_params", [{"sampler": "greedy"}, {**SHORT_CHAIN, "block_size": 24}], ids=["greedy", "power"]
)
def test_a_turn_ends_with_the_models_own_token(smollm2: Server, custom_params: dict[str, Any]) -> None:
    chat = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
    answer = asked(smollm2, chat, max_tokens=64, custom_params=custom_params)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop"
    assert "Paris" in choice["message"]["content"]
    assert "<|im" not in choice["message"]["content"]
    assert answer["usage"]["completion_tokens"] < 64


@pytest.mark.parametrize("sampler", ["greedy", "power"])
def test_a_stop_string_ends_the_answer_before_itself(
    smollm2: Server, reference: Reference, sampler: str
) -> None:
    """The comma is a token of its own, or the end of another one."""
    named: dict[str, Any] = SHORT_CHAIN if sampler == "power" else {"sampler": sampler}
    chat = [{"role": "user", "content": QUESTION}]
    answer = asked(smollm2, chat, max_tokens=48, stop=[","], custom_params=named)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"]
    assert "," not in choice["message"]["content"]
    if sampler == "greedy":
        whole = asked(smollm2, chat, max_tokens=48, custom_params=named)["choices"][0]["message"]["content"]
        assert whole.partition(",")[0] == choice["message"]["content"]
    assert reference.tokenizer.encode(choice["message"]["content"])


# --- characters of several tokens ---


def test_a_fox_is_several_tokens(reference: Reference) -> None:
    ids = reference.tokenizer.encode(FOX, add_special_tokens=False)
    assert len(ids) > 1
    assert all("\N{REPLACEMENT CHARACTER}" in reference.tokenizer.decode([token]) for token in ids[:-1])


@pytest.mark.parametrize("custom_params", [{"sampler": "greedy"}, SHORT_CHAIN], ids=["greedy", "power"])
def test_the_text_is_that_of_its_tokens(
    smollm2: Server, reference: Reference, custom_params: dict[str, Any]
) -> None:
    answer = raw_generate(
        smollm2, FOXES, sampling_params={"max_new_tokens": 24, "custom_params": custom_params}
    )
    assert FOX in answer["text"]
    assert answer["text"] == reference.tokenizer.decode(answer["output_ids"]).rstrip(
        "\N{REPLACEMENT CHARACTER}"
    )


@pytest.mark.parametrize("length", range(8, 13))
def test_an_answer_that_ends_within_a_character_is_that_of_plain_sglang(smollm2: Server, length: int) -> None:
    """Greedy by SGLang, and the likeliest of a vote of one: the same tokens, cut at the same place."""
    plain = raw_generate(smollm2, FOXES, sampling_params={"max_new_tokens": length, "temperature": 0})
    one = {"sampler": "cot", "k": 1, "answer": "text"}
    ours = raw_generate(smollm2, FOXES, sampling_params={"max_new_tokens": length, "custom_params": one})
    report_of(ours["meta_info"].get("power"), "cot")
    assert ours["output_ids"] == plain["output_ids"]
    assert ours["text"] == plain["text"]


def test_no_chunk_of_a_stream_holds_half_a_character(smollm2: Server) -> None:
    """Blocks of five tokens end within characters, over and over."""
    params = {**SHORT_CHAIN, "block_size": 5, "lookback_blocks": 1}
    body = {
        "model": SMOLLM2.name,
        "prompt": FOXES,
        "max_tokens": 24,
        "stream": True,
        "custom_params": params,
    }
    texts = [
        choice["text"] for event in events(smollm2, "/v1/completions", body) for choice in event["choices"]
    ]
    assert sum(map(bool, texts)) > 1, "the answer came in one piece"
    assert FOX in "".join(texts)
    assert not any("\N{REPLACEMENT CHARACTER}" in text for text in texts[:-1])


# --- log p against transformers ---


@pytest.mark.parametrize("sampler", ["plain", "power", "smc", "perfect"])
def test_log_p_is_that_of_transformers(smollm2: Server, reference: Reference, sampler: str) -> None:
    chat = CHATS["several turns"]
    named: dict[str, dict[str, Any]] = {
        "plain": {"temperature": 1.0},
        "power": {"custom_params": SHORT_CHAIN},
        "smc": {"custom_params": {"sampler": "smc", "particles": 4, "block_size": 8, "seed": 3}},
        "perfect": {"custom_params": {"sampler": "perfect", "alpha": 2.0, "seed": 3}},
    }
    prompt = reference.template(chat)
    length = 3 if sampler == "perfect" else 24
    body = {
        "input_ids": prompt,
        "return_logprob": True,
        "sampling_params": {"max_new_tokens": length, **named[sampler]},
    }
    answer = post(smollm2, "/generate", body, timeout=600.0).json()
    ids, told = answer["output_ids"], [entry[0] for entry in answer["meta_info"]["output_token_logprobs"]]
    assert len(told) == len(ids)
    expected = reference.log_p(prompt, ids)
    assert told == pytest.approx(expected, abs=TOLERANCE)
    if sampler != "plain":
        report = report_of(answer["meta_info"].get("power"), sampler)
        assert report["log_p"] == pytest.approx(math.fsum(expected), abs=TOLERANCE * len(ids))


def test_another_models_log_p_would_be_told_apart(reference: Reference) -> None:
    """The control: a token of another prompt is further off than the tolerance."""
    answer = reference.tokenizer.encode(" Paris.", add_special_tokens=False)
    first, second = (
        reference.log_p(reference.tokenizer.encode(text), answer)
        for text in ("The capital of France is", "The capital of Spain is")
    )
    assert max(abs(a - b) for a, b in zip(first, second, strict=True)) > 100 * TOLERANCE


# --- samplers, and a stream ---


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.label)
def test_every_sampler_answers(smollm2: Server, question: Question) -> None:
    answer = ask(client(smollm2).with_options(timeout=600.0), SMOLLM2, question)
    assert answer.text.strip()
    assert (answer.report is None) == (question.sampler is None)


def test_a_stream_of_a_chat(smollm2: Server) -> None:
    body = {
        "model": SMOLLM2.name,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 24,
        "stream": True,
        "custom_params": {**SHORT_CHAIN, "steps": 6, "early_rejection": False},
    }
    lines = list(sse_lines(smollm2, CHAT, body))
    assert any(line.startswith(":") for line in lines), "no progress was sent"
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line[6:]) for line in lines[:-1] if line.startswith("data: ")]
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert text.strip()
    ends = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    assert [end for end in ends if end is not None] in (["stop"], ["length"])
    told = [chunk["metadata"]["power"] for chunk in chunks if (chunk.get("metadata") or {}).get("power")]
    assert report_of(told[-1][0], "power")["decoded_tokens"] > 0


def test_a_seed_reproduces_a_chain(smollm2: Server) -> None:
    """Alone on the server, so that both runs' batches are the same."""
    params = {key: value for key, value in SHORT_CHAIN.items() if key != "seed"}
    first, second, other = (
        generate(smollm2, "Once upon a time,", max_new_tokens=24, seed=seed, **params) for seed in (7, 7, 8)
    )
    assert first["output_ids"] == second["output_ids"]
    assert power_of(first)["log_p"] == pytest.approx(power_of(second)["log_p"], abs=TOLERANCE)
    assert first["output_ids"] != other["output_ids"]
