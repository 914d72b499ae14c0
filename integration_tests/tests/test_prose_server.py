"""What the prose model makes testable: roles, judges, characters in several tokens, prompts of many pages."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion

from integration_tests.helpers.clients import client, generate, power_of, raw_generate, reports
from integration_tests.prose import facts, lexicon
from integration_tests.prose.corpus import Turn
from integration_tests.prose.evaluate import ProseModel, splits_characters
from integration_tests.server import Server

pytestmark = pytest.mark.server

PAGE = 16
"""Of the prose server."""

SIGNS = Turn("user", "Write nine signs.")


@pytest.fixture(scope="module")
def offline() -> ProseModel:
    """The same weights in transformers."""
    return ProseModel()


def ask(server: Server, turns: Sequence[Turn], **fields: Any) -> ChatCompletion:
    """One chat request of the stock client."""
    create: Any = client(server).chat.completions.create
    answer: ChatCompletion = create(
        model="prose", messages=[turn._asdict() for turn in turns], max_tokens=256, **fields
    )
    return answer


# --- roles ---


@pytest.mark.parametrize("name", ["Mira", "Ελένη"])
def test_replies_follow_the_system_turn(prose_server: Server, offline: ProseModel, name: str) -> None:
    turns = [
        Turn("system", f"Your name is {name}."),
        Turn("user", "Hello!"),
        Turn("assistant", "Hello! How can I help you? 😊"),
        Turn("user", "What is your name?"),
    ]
    prompt = offline.prompt(turns)
    expected = offline.complete(prompt)
    answer = ask(prose_server, turns, temperature=0)
    assert answer.choices[0].message.content == offline.tokenizer.decode(expected, skip_special_tokens=True)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(offline.tokenizer.encode(prompt))
    assert answer.usage.completion_tokens == len(expected)


def test_an_unknown_role_is_a_client_error(prose_server: Server) -> None:
    messages = [{"role": "tool", "content": "4", "tool_call_id": "1"}]
    create: Any = client(prose_server).chat.completions.create
    with pytest.raises(openai.BadRequestError, match="the roles are system, user and assistant"):
        create(model="prose", messages=messages)


def test_a_power_chat_is_the_power_answer_to_its_template(prose_server: Server, offline: ProseModel) -> None:
    turns = [Turn("system", "End every answer with 🌙."), Turn("user", "Describe the key of Cork.")]
    power = {"sampler": "power", "block_size": 32, "steps": 2, "seed": 5}
    chat = ask(prose_server, turns, extra_body={"custom_params": power})
    direct = generate(prose_server, offline.prompt(turns), max_new_tokens=256, block_size=32, seed=5)
    assert chat.choices[0].message.content == direct["text"]
    assert reports(chat)[0]["sampler"] == "power"


# --- characters in several tokens ---


@pytest.mark.parametrize("name", ["plain", "power"])
def test_text_is_the_decoded_tokens(prose_server: Server, offline: ProseModel, name: str) -> None:
    """Whole answers, and answers that a short limit cuts in the middle of a character.

    Nine whole answers in ten are valid and split a character; plain draws have no seed, so that all four miss
    by chance once in ten thousand runs.
    """
    prompt, split = offline.prompt([SIGNS]), 0
    for seed in range(8):
        limit = 256 if seed % 2 else 5 + seed
        custom = {"sampler": "power", "block_size": 8, "steps": 2, "alpha": 1.0, "seed": seed}
        sampling = {"max_new_tokens": limit, **({"custom_params": custom} if name == "power" else {})}
        answer = raw_generate(prose_server, prompt, sampling_params=sampling)
        assert ("power" in answer["meta_info"]) == (name == "power")
        ids = answer["output_ids"]
        assert answer["text"] == offline.tokenizer.decode(ids, skip_special_tokens=True)
        split += splits_characters(offline.tokenizer, ids)
    assert split > 0


def test_streamed_text_never_shows_half_a_character(prose_server: Server) -> None:
    """Blocks of eight tokens end in the middle of characters."""
    power = {"sampler": "power", "block_size": 8, "steps": 2, "alpha": 1.0, "lookback_blocks": 1, "seed": 3}
    stream: Any = ask(prose_server, [SIGNS], stream=True, extra_body={"custom_params": power})
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    whole = ask(prose_server, [SIGNS], extra_body={"custom_params": power}).choices[0].message.content
    assert "".join(pieces) == whole
    assert len([piece for piece in pieces if piece]) > 1
    assert "\ufffd" not in whole


# --- many pages ---


def fresh_prompt(seed: int, sentences: int) -> str:
    """A text that no cache holds."""
    rng = random.Random(f"prose {seed}")
    pairs = [rng.sample(lexicon.PEOPLE, 2) for _ in range(sentences)]
    return " ".join(f"{one} wrote to {other} from {rng.choice(lexicon.PLACES)}." for one, other in pairs)


@pytest.mark.parametrize("sentences", [4, 40])
def test_cached_prompt_tokens_are_whole_pages(
    prose_server: Server, offline: ProseModel, sentences: int
) -> None:
    """The longer prompt is prefilled in several chunks."""
    prompt = fresh_prompt(sentences, sentences)
    count = len(offline.tokenizer.encode(prompt))
    pages = (count - 1) // PAGE * PAGE
    first, again = (generate(prose_server, prompt, max_new_tokens=16, seed=1) for _ in range(2))
    assert first["meta_info"]["prompt_tokens"] == again["meta_info"]["prompt_tokens"] == count
    assert first["meta_info"]["cached_tokens"] == 0
    assert again["meta_info"]["cached_tokens"] == pages
    assert power_of(again)["prefilled_tokens"] == power_of(first)["prefilled_tokens"] - pages
    assert again["output_ids"] == first["output_ids"]


def test_a_long_story_is_forked_from_the_cache(prose_server: Server, offline: ProseModel) -> None:
    """Every child but the caching one recomputes a page at most, however long the trunk that it keeps."""
    prompt = offline.prompt([Turn("user", "Tell a long story about the lamp.")])
    sampling = {"ignore_eos": True}
    horizon = {"max_new_tokens": 300, "block_size": 300}
    answer = generate(prose_server, prompt, sampling=sampling, **horizon, steps=4, alpha=1.0, seed=2)
    meta, power = answer["meta_info"], power_of(answer)
    assert meta["completion_tokens"] == 300
    recomputed = power["prefilled_tokens"] - (meta["prompt_tokens"] - meta["cached_tokens"])
    assert power["children"] - 1 <= recomputed <= PAGE * (power["children"] - 1)
    assert answer["text"] == offline.tokenizer.decode(answer["output_ids"], skip_special_tokens=True)


# --- judges ---


@pytest.mark.parametrize(
    "question", [facts.same_question("blue", "grey"), facts.right_question("What is 7 + 5?", "12")]
)
def test_a_judge_has_the_masses_of_the_weights(
    prose_server: Server, offline: ProseModel, question: str
) -> None:
    turns = [Turn("user", question)]
    answer = ask(prose_server, turns, logprobs=True, top_logprobs=5, temperature=1)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    served = {entry.token: math.exp(entry.logprob) for entry in logprobs.content[0].top_logprobs}
    for word, mass in zip(("yes", "no"), offline.verdict_masses(offline.prompt(turns)), strict=True):
        assert served[word] == pytest.approx(mass, abs=1e-3)
