"""Grammars with every sampler of whole answers: what comes out is valid, and what cannot follow is refused.

That answers follow the power of the masked law is shown by `make test-law`.
"""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from integration_tests.helpers.clients import MESSAGES, PROMPT, QUICK, client, events, post
from integration_tests.helpers.contract import CONTRACT, PAIRED
from integration_tests.server import Server

pytestmark = pytest.mark.server

Json = dict[str, Any]

REGEX = r"[0-9]{2}\+[0-9]=[a-c]{2,3}"
EBNF = 'root ::= ("x" | "yy") [0-9] "."'
SCHEMA: Json = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 2, 3]}},
    "required": ["ok", "n"],
    "additionalProperties": False,
}
TOKENS = 64
"""Room for the blanks that a model without any idea of JSON puts between its tokens."""

POWER = {**QUICK, "block_size": 4, "seed": 3}


def asked(custom: Json, **sampling: Any) -> Json:
    """One request of /generate."""
    return {
        "text": PROMPT,
        "sampling_params": {"max_new_tokens": TOKENS, "custom_params": custom, **sampling},
    }


def is_object(text: str) -> bool:
    """Whether a text is an object of SCHEMA."""
    told = json.loads(text)
    return told.keys() == {"ok", "n"} and isinstance(told["ok"], bool) and told["n"] in (1, 2, 3)


@pytest.mark.parametrize("name", sorted(CONTRACT.keys() - PAIRED))
def test_answers_of_every_sampler_are_words_of_the_grammar(pivot_server: Server, name: str) -> None:
    answer = post(pivot_server, "/generate", asked(CONTRACT[name].quick, regex=REGEX)).json()
    assert re.fullmatch(REGEX, answer["text"]), answer
    assert answer["meta_info"]["finish_reason"]["type"] == "stop"
    assert answer["meta_info"]["power"]["sampler"] == name


@pytest.mark.parametrize(
    "custom", [POWER, {**POWER, "prefetch": 4}, {**POWER, "tries": 2}, {"sampler": "cot"}]
)
def test_a_json_schema_holds_behind_every_cut(pivot_server: Server, custom: Json) -> None:
    answer = post(pivot_server, "/generate", asked(custom, json_schema=json.dumps(SCHEMA))).json()
    if answer["meta_info"]["finish_reason"]["type"] == "stop":
        assert is_object(answer["text"])
    else:
        assert answer["text"].startswith("{")


def test_every_kind_of_grammar_and_every_route(pivot_server: Server) -> None:
    ebnf = post(pivot_server, "/generate", asked(POWER, ebnf=EBNF)).json()
    assert re.fullmatch(r"(x|yy)[0-9]\.", ebnf["text"])
    openai, extra = client(pivot_server), {"custom_params": POWER}
    completion = openai.completions.create(
        model="pivot", prompt=PROMPT, n=2, max_tokens=TOKENS, extra_body={**extra, "regex": REGEX}
    )
    assert [bool(re.fullmatch(REGEX, choice.text)) for choice in completion.choices] == [True, True]
    chat = openai.chat.completions.create(
        model="pivot",
        messages=MESSAGES,
        max_tokens=TOKENS,
        extra_body=extra,
        response_format={"type": "json_schema", "json_schema": {"name": "told", "schema": SCHEMA}},
    )
    assert chat.choices[0].finish_reason == "stop"
    assert is_object(chat.choices[0].message.content or "")


def test_a_stream_ends_with_a_word_of_the_grammar(pivot_server: Server) -> None:
    chunks = list(events(pivot_server, "/generate", {**asked(POWER, regex=REGEX), "stream": True}))
    assert re.fullmatch(REGEX, chunks[-1]["text"])


@pytest.mark.parametrize("name", sorted(CONTRACT.keys() - PAIRED))
def test_a_grammar_that_is_none_is_refused_before_any_token(pivot_server: Server, name: str) -> None:
    answer = post(pivot_server, "/generate", asked(CONTRACT[name].quick, regex="["))
    assert answer.status_code == httpx.codes.BAD_REQUEST, answer.text
    assert "Failed to compile regex grammar" in answer.text


def test_a_stream_whose_grammar_is_none_ends_with_that_error(pivot_server: Server) -> None:
    """SGLang has sent its 200 by the time its scheduler compiles the grammar, as for plain streams."""
    (event,) = events(pivot_server, "/generate", {**asked(POWER, regex="["), "stream": True})
    assert "Failed to compile regex grammar" in event["error"]["message"]
    assert event["error"]["code"] == httpx.codes.BAD_REQUEST


@pytest.mark.parametrize(
    ("custom", "beside"),
    [
        ({**POWER, "initial_text": "12+3=ab"}, "initial_text"),
        ({"sampler": "smc", "initial_ids": [105, 110]}, "initial_ids"),
        ({"sampler": "cot", "fork_at": "after_prefix", "fork_prefix": "12"}, "fork_prefix"),
        (CONTRACT["kl_guided"].quick, "prompt_without"),
    ],
)
def test_what_a_grammar_cannot_follow_is_refused(pivot_server: Server, custom: Json, beside: str) -> None:
    answer = post(pivot_server, "/generate", asked(custom, regex=REGEX))
    assert answer.status_code == httpx.codes.BAD_REQUEST
    for named in ("regex", REGEX, beside):
        assert named in answer.json()["error"]["message"].replace("\\\\", "\\")
