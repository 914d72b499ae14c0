"""Answers near the end of the context: as long as SGLang's own, whoever draws them.

The context has 256 tokens. SGLang (0.5.20 to 0.5.23) ends answers at 254 without a word, and refuses what is
asked beyond 256; it takes no prompt of 250 tokens, so that children of longer prefixes begin earlier.
"""

from __future__ import annotations

import functools
from typing import Any

import httpx
import pytest

from integration_tests.helpers.clients import Answer, client, post, power_of, raw_generate, reports, together
from integration_tests.server import Server

pytestmark = pytest.mark.server

Json = dict[str, Any]

CONTEXT, LAST = 256, 254
PROMPTS = {length: "R" + "1+" * ((length - 2) // 2) + "1" * (length % 2) + ":" for length in (200, 249)}

POWER: Json = {"sampler": "power", "block_size": 16, "steps": 2}
VOTE: Json = {"sampler": "vote", "samples": 3, "answer": "text"}
SAMPLERS: dict[str, Json] = {
    "power": POWER,
    "power_2": {**POWER, "seed": 2},
    "power_3": {**POWER, "seed": 3},
    "power_4": {**POWER, "seed": 4, "lookback_blocks": 1},
    "power_entropy": {**POWER, "cut": "entropy"},
    "power_entropy_2": {**POWER, "cut": "entropy", "seed": 2, "early_rejection": False},
    "branch": {"sampler": "branch", "threshold": 0.0, "max_depth": 2, "answer": "text"},
    "branch_refined": {"sampler": "branch", "answer": "text", "refine": {"sampler": "power", "steps": 2}},
    "cot": {"sampler": "cot", "k": 3, "answer": "text"},
    "vote": VOTE,
    "vote_power": {**VOTE, "base": POWER, "weight": "power"},
    "best_of": {"sampler": "best_of", "samples": 3, "answer": "text"},
    "kl_guided": {"sampler": "kl_guided", "prompt_without": "R7:", "sigma": 0.5},
    "top_n_sigma": {"sampler": "top_n_sigma", "n": 2.0},
}


def ask(server: Server, prompt: int, tokens: int | None, custom: Json | None, **fields: Any) -> Answer:
    params: Json = {"max_new_tokens": tokens, "ignore_eos": True}
    if custom is not None:
        params["custom_params"] = {"seed": 1, **custom}
    answer: Answer = raw_generate(server, PROMPTS[prompt], sampling_params=params, **fields)
    assert answer["meta_info"]["prompt_tokens"] == prompt
    return answer


def length(answer: Answer) -> int:
    """Of an answer that ended because it was long enough."""
    tokens = len(answer["output_ids"])
    assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": tokens}
    assert answer["meta_info"]["completion_tokens"] == tokens
    return tokens


CASES = [
    *[pytest.param(200, tokens, marks=pytest.mark.long) for tokens in (None, 53, 54)],
    *[(200, 55), (200, 56), (249, None), (249, 5), (249, 6), (249, 7)],
]


@pytest.mark.parametrize(("prompt", "tokens"), CASES)
def test_plain_answers_end_there(pivot_server: Server, prompt: int, tokens: int | None) -> None:
    """The yardstick."""
    expected = min(LAST - prompt, CONTEXT if tokens is None else tokens)
    params = {"max_new_tokens": tokens, "ignore_eos": True}
    answer = raw_generate(pivot_server, PROMPTS[prompt], sampling_params=params)
    assert len(answer["output_ids"]) == expected


@pytest.mark.parametrize(("prompt", "tokens"), CASES)
def test_every_sampler_gives_as_many_tokens(pivot_server: Server, prompt: int, tokens: int | None) -> None:
    expected = min(LAST - prompt, CONTEXT if tokens is None else tokens)
    calls = [functools.partial(ask, pivot_server, prompt, tokens, custom) for custom in SAMPLERS.values()]
    answers = dict(zip(SAMPLERS, together(calls), strict=True))
    assert {name: length(answer) for name, answer in answers.items()} == dict.fromkeys(SAMPLERS, expected)
    for name, answer in answers.items():
        ended = power_of(answer).get("stopped_by", "completed")
        assert ended in ("completed", "max_depth", "max_branches"), name
    weighed = power_of(answers["vote_power"])
    assert weighed["ess"] is not None
    assert all("note" not in path for path in weighed["paths"]), "every sample has its weight"


@pytest.mark.parametrize(("prompt", "tokens"), [(200, 57), (249, 8)])
def test_more_than_the_context_is_refused_as_sglang_does(
    pivot_server: Server, prompt: int, tokens: int
) -> None:
    def status(custom: Json) -> int:
        params: Json = {"max_new_tokens": tokens, "ignore_eos": True, **custom}
        body = {"text": PROMPTS[prompt], "sampling_params": params}
        return post(pivot_server, "/generate", body).status_code

    asked = [{}, *({"custom_params": custom} for custom in SAMPLERS.values())]
    found = together([functools.partial(status, custom) for custom in asked])
    assert found == [httpx.codes.BAD_REQUEST] * len(asked)


@pytest.mark.parametrize("sampler", ["best_of", "vote", "cot"])
@pytest.mark.parametrize(("prompt", "tokens", "expected"), [(200, None, 27), (249, None, 3), (249, 5, 5)])
def test_an_open_length_leaves_room_to_ask_for_the_answer(
    pivot_server: Server, sampler: str, prompt: int, tokens: int | None, expected: int
) -> None:
    """Half of what there is, where there is little; an explicit length is what the client wants."""
    custom = {"sampler": sampler, "answer": "continuation"}
    answer = ask(pivot_server, prompt, tokens, custom)
    assert length(answer) == expected
    assert power_of(answer)["stopped_by"] == "completed"
    notes = [path.get("note") for path in power_of(answer)["paths"]]
    asked = prompt == 200 and tokens is None
    assert [note is None for note in notes] == [asked] * len(notes), notes


@pytest.mark.parametrize("prompt", PROMPTS)
def test_chats_that_name_no_length_get_what_there_is(pivot_server: Server, prompt: int) -> None:
    def chat(custom: Json) -> tuple[Any, ...]:
        response = client(pivot_server).chat.completions.create(
            model="pivot",
            messages=[{"role": "user", "content": PROMPTS[prompt]}],
            extra_body={"custom_params": {"seed": 1, **custom}, "ignore_eos": True},
        )
        assert response.usage is not None
        usage = response.usage.prompt_tokens, response.usage.completion_tokens
        return *usage, response.choices[0].finish_reason, reports(response)[0]["sampler"]

    found = together([functools.partial(chat, custom) for custom in SAMPLERS.values()])
    expected = [(prompt, LAST - prompt, "length", custom["sampler"]) for custom in SAMPLERS.values()]
    assert found == expected


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("fields", [{}, {"max_tokens": 5}])
def test_a_default_preset_serves_chats_near_the_end(
    default_server: Server, prompt: int, fields: Json
) -> None:
    response = client(default_server).chat.completions.create(
        model="defaulted",
        messages=[{"role": "user", "content": PROMPTS[prompt]}],
        extra_body={"ignore_eos": True},
        **fields,
    )
    (report,) = reports(response)
    assert (report["sampler"], report["fallback_reason"]) == ("power", None)
    assert response.usage is not None
    assert response.usage.completion_tokens == fields.get("max_tokens", LAST - prompt)


@pytest.mark.parametrize("n", [1, 3])
def test_several_answers_near_the_end(pivot_server: Server, n: int) -> None:
    params = {"max_new_tokens": None, "ignore_eos": True, "n": n, "custom_params": {**POWER, "seed": 5}}
    found = raw_generate(pivot_server, PROMPTS[249], sampling_params=params)
    assert [length(each) for each in (found if isinstance(found, list) else [found])] == [5] * n
