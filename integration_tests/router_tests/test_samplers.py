"""Samplers that are named through SGLang's router: what arrives, what is lost, and that it is said.

Answers are compared with those of a worker that is asked itself, under the same seed. Error rate 0.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from integration_tests.helpers.clients import (
    MESSAGES,
    PROMPT,
    QUICK,
    client,
    events,
    post,
    reports,
    sse_lines,
)
from integration_tests.router_tests.asking import (
    CHAT,
    COMPLETIONS,
    GENERATE,
    SEEDED,
    asked,
    body_of,
    carried,
    power,
    texts,
)
from integration_tests.router_tests.cluster import MODEL, PRESETS, REWARD, Cluster

pytestmark = pytest.mark.server

Json = dict[str, Any]

SAMPLERS: list[Json] = [
    SEEDED,
    {"preset": "short", "seed": 3},
    {"sampler": "top_n_sigma", "n": 1.2, "seed": 5},
    {"sampler": "kl_guided", "prompt_without": "R", "seed": 6},
    {"sampler": "cot", "seed": 2},
    {"sampler": "vote", "samples": 3, "seed": 4},
    {"sampler": "best_of", "samples": 3, "seed": 4},
    {"sampler": "branch", "seed": 2},
]


# --- what arrives ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("named", SAMPLERS, ids=lambda named: next(iter(named.values())))
def test_every_sampler_is_the_same_through_the_router(routed: Cluster, path: str, named: Json) -> None:
    direct = asked(routed.workers[0], path, custom_params=named)
    through = asked(routed.router, path, **carried(named))
    assert texts(through) == texts(direct)
    (report,), (expected,) = power(through), power(direct)
    for key in ("sampler", "params", "seed"):
        assert report.get(key) == expected.get(key), key
    assert report["sampler"] == named.get("sampler", "power")


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_several_answers(routed: Cluster, path: str) -> None:
    direct = asked(routed.workers[0], path, n=3, custom_params=SEEDED)
    through = asked(routed.router, path, n=3, **carried(SEEDED))
    assert texts(through) == texts(direct)
    assert [report["sampler"] for report in power(through)] == ["power"] * 3
    assert len({report["seed"] for report in power(through)}) == len(
        {report["seed"] for report in power(direct)}
    )


@pytest.mark.parametrize(
    "named", [{"custom_params": SEEDED}, carried(SEEDED)], ids=["custom_params", "metadata"]
)
def test_completions_pass_every_field(routed: Cluster, named: Json) -> None:
    direct = asked(routed.workers[0], COMPLETIONS, custom_params=SEEDED)
    assert texts(asked(routed.router, COMPLETIONS, **named)) == texts(direct)


def test_completions_may_name_a_sampler_at_the_top(routed: Cluster) -> None:
    (report,) = power(asked(routed.router, COMPLETIONS, sampler="power"))
    assert (report["sampler"], report["params"]["alpha"]) == ("power", 4.0)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_metadata_opts_out_of_a_default(routed: Cluster, path: str) -> None:
    assert power(asked(routed.router, path, **carried({"sampler": "none"}))) == []
    (report,) = power(asked(routed.router, path))
    assert report["params"]["alpha"] == PRESETS["default"]["alpha"]


def test_the_stock_client_names_a_sampler(routed: Cluster) -> None:
    """`metadata` is an argument of the client's own: nothing of it needs `extra_body`."""
    answer = client(routed.router).chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=24, metadata={"sglang_power": json.dumps(SEEDED)}
    )
    (report,) = reports(answer)
    assert (report["sampler"], report["seed"]) == ("power", 7)
    assert answer.choices[0].message.content == texts(asked(routed.workers[0], CHAT, custom_params=SEEDED))[0]


def test_responses_are_sampled_too(routed: Cluster) -> None:
    """The router sends `stream: null` where a client names none, which SGLang refuses: the client must."""
    body = {"model": MODEL, "input": PROMPT, "max_output_tokens": 24, "stream": False}
    said = [
        post(server, "/v1/responses", {**body, **carried(SEEDED)}).json()["output"][0]["content"]
        for server in (routed.workers[0], routed.router)
    ]
    assert said[0] == said[1]
    assert said[0][0]["text"] == texts(asked(routed.workers[0], COMPLETIONS, custom_params=SEEDED))[0]


# --- streams --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_streams_carry_text_progress_and_the_report(routed: Cluster, path: str) -> None:
    body = body_of(path, stream=True, **carried(SEEDED))
    chunks = events(routed.router, path, body)
    pieces = [choice for chunk in chunks for choice in chunk["choices"]]
    text = "".join(
        (piece["delta"].get("content") or "") if path == CHAT else piece["text"] for piece in pieces
    )
    assert [text] == texts(asked(routed.workers[0], path, custom_params=SEEDED))
    (last,) = [chunk for chunk in chunks if "metadata" in chunk]
    assert [report["seed"] for report in power(last)] == [7]
    comments = [line for line in sse_lines(routed.router, path, body) if line.startswith(":")]
    assert [line for line in comments if line.startswith(": sglang-power {")], comments


# --- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "fields", "said"),
    [
        (
            CHAT,
            {"metadata": {"sglang_power": "{sampler: power}"}},
            "metadata.sglang_power='{sampler: power}': not",
        ),
        (CHAT, {"metadata": {"sglang_power": "[]"}}, "metadata.sglang_power='[]': not a JSON object"),
        (CHAT, carried({**QUICK, "alpha": 0.5}), "alpha=0.5"),
        (CHAT, carried({"preset": "unknown"}), "preset='unknown'"),
        (CHAT, {**carried(QUICK), "temperature": 0.5}, "temperature=0.5"),
        (
            CHAT,
            {**carried({**QUICK, "top_p": 0.5}), "top_p": 0.9},
            "contradicts metadata.sglang_power.top_p=0.5",
        ),
        (
            COMPLETIONS,
            {**carried(QUICK), "custom_params": {"sampler": "cot"}},
            "metadata.sglang_power.sampler='power': contradicts custom_params.sampler='cot'",
        ),
        (
            COMPLETIONS,
            {**carried({"sampler": "cot"}), "sampler": "power"},
            "contradicts metadata.sglang_power",
        ),
    ],
)
def test_what_cannot_be_served_is_refused(
    routed: Cluster, path: str, fields: Json, said: str, stream: bool
) -> None:
    """An explicit request never falls back, and the router hands the message on."""
    response = post(routed.router, path, body_of(path, stream=stream, **fields))
    assert response.status_code == httpx.codes.BAD_REQUEST
    assert said in response.json()["message"]


def test_the_router_itself_refuses_metadata_that_is_no_text(routed: Cluster) -> None:
    response = post(routed.router, CHAT, body_of(CHAT, metadata={"sglang_power": SEEDED}))
    assert response.status_code == httpx.codes.BAD_REQUEST
    assert "metadata.sglang_power: invalid type: map, expected a string" in response.text
    assert power(asked(routed.workers[0], CHAT, metadata={"sglang_power": SEEDED}))


# --- what is lost: where one of these fails, the router has learned something: change the documents -------


@pytest.mark.parametrize(
    "fields",
    [
        {"custom_params": SEEDED},
        {"sampler": "cot", "seed": 2},
        {"preset": "short"},
        {"custom_params": {"sampler": "none"}},
    ],
)
def test_chat_loses_other_fields_and_gets_the_default(routed: Cluster, fields: Json) -> None:
    (report,) = power(asked(routed.router, CHAT, **fields))
    assert (report["sampler"], report["params"]["alpha"]) == ("power", PRESETS["default"]["alpha"])


@pytest.mark.parametrize(
    "fields",
    [
        {"sampler": "cot", "seed": 2},
        {"preset": "short"},
        {"custom_params": SEEDED},
        carried(SEEDED),
        {"sampling_params": {"max_new_tokens": 24, "sampler": "cot"}},
        {"sampling_params": {"max_new_tokens": 24, "custom_params": SEEDED}},
        {"sampling_params": {"max_new_tokens": 24, "custom_params": {"sampler": "none"}}},
    ],
    ids=str,
)
def test_generate_loses_everything_and_gets_the_default(routed: Cluster, fields: Json) -> None:
    body = {"text": PROMPT, "sampling_params": {"max_new_tokens": 24}, **fields}
    report = post(routed.router, GENERATE, body).json()["meta_info"]["power"]
    assert (report["sampler"], report["params"]["alpha"]) == ("power", PRESETS["default"]["alpha"])


def test_the_router_repeats_what_failed(routed: Cluster) -> None:
    """As it does with every 5xx: a reward that is away costs the tokens of each attempt."""
    named = {**QUICK, "steps": 1, "reward": REWARD, "reward_weight": 1.0}
    routed.quiet()
    before = sum(routed.scheduled())
    assert post(routed.workers[0], CHAT, body_of(CHAT, custom_params=named)).status_code == 502
    routed.quiet()
    once = sum(routed.scheduled()) - before
    assert post(routed.router, CHAT, body_of(CHAT, **carried(named))).status_code == 502
    routed.quiet()
    assert sum(routed.scheduled()) - before - once > once
