"""`top_logprobs` and `token_ids_logprob` of samplers of whole answers: of the rows that the answer came from.

The oracle is SGLang itself: at every token of an answer, a plain request of one token behind the same prefix
with the same logit_bias and masks, at temperature 1. Deterministic but for the arithmetic of other batches.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from integration_tests.helpers.clients import (
    EOS,
    MESSAGES,
    PROMPT,
    QUICK,
    client,
    events,
    power_of,
    raw_generate,
)
from integration_tests.pivot.tokenizer import VOCAB_SIZE
from integration_tests.server import Server

pytestmark = pytest.mark.server

Json = dict[str, Any]

DRIFT = 2e-3
"""Of log probabilities between batches of different shapes."""

HOT: Json = {"proposal_temperature": 2.0, "top_k": 5}
SAMPLERS: dict[str, Json] = {
    "power": {**QUICK, "seed": 3},
    "power, hot and truncated": {**QUICK, **HOT, "seed": 3},
    "power, a policy proposes": {**QUICK, "seed": 3, "proposal_policy": {"sampler": "top_n_sigma", "n": 1.0}},
    "power from a draft": {**QUICK, "seed": 3, "initial_text": "b7+"},
    "cot": {"sampler": "cot", "k": 4, "answer": "text"},
    "cot behind a prefix": {
        "sampler": "cot",
        "k": 3,
        "answer": "continuation",
        "fork_at": "after_prefix",
        "fork_prefix": "b7",
    },
    "branch": {"sampler": "branch", "threshold": 0.1, "answer": "text"},
    "branch, refined": {
        "sampler": "branch",
        "policy": "tree",
        "max_branches": 4,
        "seed": 1,
        "answer": "text",
        "refine": {"sampler": "power", "steps": 2},
    },
    "vote": {"sampler": "vote", "samples": 3, "seed": 2, "answer": "text"},
    "vote over chains": {"sampler": "vote", "samples": 2, "seed": 2, "answer": "text", "base": QUICK},
    "best_of": {"sampler": "best_of", "samples": 3, "seed": 2, "answer": "text"},
    "kl_guided": {"sampler": "kl_guided", "prompt_without": "R", "seed": 2},
}


def ids_of(text: str) -> list[int]:
    return [byte + 2 for byte in text.encode()]


def asked(custom: Json, **sampling: Any) -> Json:
    """A short answer with every token's log probability, and those of three named ones."""
    params = {"max_new_tokens": 10, "custom_params": custom, **sampling}
    return {
        "sampling_params": params,
        "return_logprob": True,
        "top_logprobs_num": VOCAB_SIZE,
        "token_ids_logprob": [40, EOS, 57],
    }


def plain_rows(
    server: Server, ids: list[int], bias: Json | None, min_new_tokens: int
) -> list[dict[int, float]]:
    """SGLang's own log probabilities at every token of an answer."""
    each = [
        {
            "max_new_tokens": 1,
            "temperature": 1.0,
            "min_new_tokens": int(t < min_new_tokens),
            **({} if bias is None else {"logit_bias": bias}),
        }
        for t in range(len(ids))
    ]
    answers = raw_generate(
        server,
        None,
        input_ids=[[*ids_of(PROMPT), *ids[:t]] for t in range(len(ids))],
        sampling_params=each,
        return_logprob=True,
        top_logprobs_num=VOCAB_SIZE,
    )
    return [{v: value for value, v, _ in one["meta_info"]["output_top_logprobs"][0]} for one in answers]


def likeliest(server: Server) -> list[int]:
    """The two most likely first tokens of the prompt's answer."""
    return list(plain_rows(server, [0], None, 0)[0])[:2]


ROUNDED = -85.0
"""Nats: exp of less is no normal number in float32, and SGLang takes logarithms of probabilities."""


def assert_same(ours: dict[int, float], plain: dict[int, float]) -> None:
    """Equal but for drift; what SGLang's own rows round to 0 is as small in ours."""
    assert ours.keys() == plain.keys()
    for token, value in plain.items():
        assert max(ours[token], ROUNDED) == pytest.approx(max(value, ROUNDED), abs=DRIFT, rel=1e-3)


@pytest.mark.parametrize("custom", SAMPLERS.values(), ids=list(SAMPLERS))
def test_alternatives_are_of_the_row_after_bias_and_masks(pivot_server: Server, custom: Json) -> None:
    banned = likeliest(pivot_server)
    bias, least = {str(token): -100.0 for token in banned} | {"57": 1.5}, 6
    body = asked(custom, logit_bias=bias, min_new_tokens=least)
    answer = raw_generate(pivot_server, PROMPT, **body)
    meta, ids = answer["meta_info"], answer["output_ids"]
    assert power_of(answer)["sampler"] == custom["sampler"]
    assert len(ids) >= least
    plain = plain_rows(pivot_server, ids, bias, least)
    tops, named = meta["output_top_logprobs"], meta["output_token_ids_logprobs"]
    assert len(tops) == len(named) == len(meta["output_token_logprobs"]) == len(ids)
    for t, row in enumerate(tops):
        ours = {token: value for value, token, _ in row}
        assert_same(ours, plain[t])
        assert [value for value, _, _ in row] == sorted(ours.values(), reverse=True)
        assert not {token for _, token, _ in row[:5]} & set(banned)
        value, token, _ = meta["output_token_logprobs"][t]
        assert token == ids[t]
        assert value == pytest.approx(ours[token], abs=1e-4), "of the same row"
        assert [v for _, v, _ in named[t]] == body["token_ids_logprob"]
        assert [x for x, _, _ in named[t]] == pytest.approx([ours[v] for v in body["token_ids_logprob"]])


def test_without_the_bias_the_rows_are_other_ones(pivot_server: Server) -> None:
    """So that the test above can fail: what was shown before, rows without bias and masks, is far away."""
    banned = likeliest(pivot_server)
    bias = {str(token): -100.0 for token in banned}
    biased, free = plain_rows(pivot_server, [0], bias, 1)[0], plain_rows(pivot_server, [0], None, 0)[0]
    assert max(abs(biased[token] - free[token]) for token in free if biased[token] > -50) > 0.5
    assert math.exp(free[banned[0]]) > 0.05


def test_nothing_more_is_computed_than_without(pivot_server: Server) -> None:
    """No further pass over the answer: the same children and tokens, and the same answer."""
    for custom in (SAMPLERS["power"], SAMPLERS["cot"], SAMPLERS["vote"]):
        params = {"max_new_tokens": 10, "custom_params": custom}
        bare = raw_generate(pivot_server, PROMPT, sampling_params=params)
        full = raw_generate(pivot_server, PROMPT, **asked(custom))
        assert full["output_ids"] == bare["output_ids"]
        for name in ("children", "decoded_tokens", "depth"):
            assert power_of(full)[name] == power_of(bare)[name]


@pytest.mark.parametrize("name", ["power", "cot", "vote"])
def test_several_choices_and_streams_have_their_own(pivot_server: Server, name: str) -> None:
    body = asked(SAMPLERS[name], n=2)
    pair = raw_generate(pivot_server, PROMPT, **body)
    chunks = events(pivot_server, "/generate", {"text": PROMPT, "stream": True, **body})
    last = {chunk["index"]: chunk for chunk in chunks}
    for number, answer in enumerate(pair):
        ids = answer["output_ids"]
        plain = plain_rows(pivot_server, ids, None, 0)
        for table, row in zip(plain, answer["meta_info"]["output_top_logprobs"], strict=True):
            assert_same({token: value for value, token, _ in row}, table)
        streamed = last[number]
        assert streamed["output_ids"] == ids
        assert len(streamed["meta_info"]["output_top_logprobs"]) == len(ids)
        assert len(streamed["meta_info"]["output_token_ids_logprobs"]) == len(ids)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_openai_clients_never_see_a_banned_token_as_an_alternative(
    pivot_server: Server, stream: bool
) -> None:
    tokenizer_text = {token: chr(token - 2) for token in likeliest(pivot_server)}
    shared: Json = {
        "model": "pivot",
        "logit_bias": {str(token): -100 for token in tokenizer_text},
        "max_tokens": 10,
        "extra_body": {"custom_params": SAMPLERS["cot"]},
    }
    openai: Any = client(pivot_server)
    chats = openai.chat.completions.create(
        messages=MESSAGES, logprobs=True, top_logprobs=5, stream=stream, **shared
    )
    content = [
        token
        for one in (chats if stream else [chats])
        for choice in one.choices
        if choice.logprobs is not None
        for token in choice.logprobs.content or ()
    ]
    assert content
    assert all(len(token.top_logprobs) == 5 for token in content)
    assert not {top.token for top in content[0].top_logprobs} & set(tokenizer_text.values())
    completions = openai.completions.create(prompt=PROMPT, logprobs=5, stream=stream, **shared)
    rows = [
        row
        for one in (completions if stream else [completions])
        for choice in one.choices
        if choice.logprobs is not None
        for row in choice.logprobs.top_logprobs or ()
    ]
    assert len(rows) == len(content)
    assert not set(rows[0] or {}) & set(tokenizer_text.values())
