"""`smc` through the real server: what it reports, streams, drafts, votes, bad input. No statistics."""

from __future__ import annotations

import itertools
from typing import Any

import httpx
import numpy as np
import pytest

from integration_tests.helpers.clients import (
    MESSAGES,
    PROMPT,
    PROMPT_Q,
    client,
    events,
    post,
    power_of,
    raw_generate,
    reports,
    scheduled,
)
from integration_tests.server import Server

pytestmark = pytest.mark.server

Json = dict[str, Any]

SMALL: Json = {"sampler": "smc", "particles": 4, "block_size": 8, "seed": 3}
LETTER: Json = {"answer": "regex", "answer_regex": r"A(\d)"}
FIELDS = {
    *{"sampler", "params", "seed", "decoded_tokens", "prefilled_tokens", "wasted_tokens", "depth"},
    *{"children", "law", "fallback_reason", "log_p", "log_target", "stopped_by", "weight_version", "version"},
    *{"runs", "particles", "log_z", "log_z_sd", "ess", "resamplings", "accepted", "acceptance_rate"},
}


def ask(server: Server, prompt: str = PROMPT, tokens: int = 48, sampling: Any = None, **smc: Any) -> Any:
    params = {"max_new_tokens": tokens, "custom_params": {**SMALL, **smc}, **(sampling or {})}
    return raw_generate(server, prompt, sampling_params=params)


def test_what_it_reports(pivot_server: Server) -> None:
    answer = ask(pivot_server, runs=2)
    power = power_of(answer)
    assert power.keys() - {"hint"} == FIELDS
    assert (power["runs"], power["particles"], power["law"]) == (2, 4, "power")
    assert power["params"]["resampling"] == "systematic"
    assert power["params"]["proposal_temperature"] == 0.25
    assert power["log_z_sd"] == pytest.approx(float(np.std(power["log_z"], ddof=1)))
    assert all(1.0 <= ess <= 4.0 + 1e-9 for trace in power["ess"] for ess in trace)
    length = answer["meta_info"]["completion_tokens"]
    assert power["decoded_tokens"] > 4 * length > 2 * power["depth"] > 2 * length
    told = dict.fromkeys(("max_new_tokens", "draft", "neutralised"))
    again = ask(pivot_server, **{**power["params"], **told})
    assert power_of(again)["params"] == power["params"]


def test_particles_share_what_is_cached(pivot_server: Server) -> None:
    """Children of a later block compute one token each; the first ones the prompt's last."""
    power = power_of(ask(pivot_server, runs=2))
    assert power["prefilled_tokens"] <= power["children"] + len(PROMPT)


def test_a_stream_shows_what_all_particles_share(pivot_server: Server) -> None:
    """Of one run; of several ones nothing before the end. No text is taken back."""
    for runs in (1, 2):
        custom = {**SMALL, "runs": runs, "ess_threshold": 1.0, "block_size": 4, "particles": 2}
        body = {"text": PROMPT, "stream": True, "sampling_params": {"max_new_tokens": 48}}
        body["sampling_params"] |= {"custom_params": custom}  # type: ignore[operator]
        told = events(pivot_server, "/generate", body)
        texts = [event["text"] for event in told]
        assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
        assert any(texts[:-1]) == (runs == 1)
        assert power_of(told[-1])["runs"] == runs


def test_openai_clients(pivot_server: Server) -> None:
    chat = client(pivot_server).chat.completions.create(
        model="pivot", messages=MESSAGES, max_tokens=48, n=2, extra_body={"custom_params": {**SMALL}}
    )
    assert [report["sampler"] for report in reports(chat)] == ["smc", "smc"]
    assert chat.choices[0].message.content == ask(pivot_server)["text"]


def test_a_vote(pivot_server: Server) -> None:
    answer = ask(pivot_server, PROMPT_Q, particles=8, runs=2, result="vote", **LETTER)
    power = power_of(answer)
    assert (power["law"], power["params"]["result"]) == ("approximate", "vote")
    weights = [one["weight"] for one in power["classes"] if one["weight"] is not None]
    assert sum(weights) == pytest.approx(1.0)
    chosen = power["paths"][power["chosen"]["index"]]
    assert chosen["text"] == answer["text"]
    best = max(power["classes"], key=lambda one: one["weight"] or 0.0)
    assert chosen["answer"] == best["representative"]


def test_the_likeliest_and_a_draft(pivot_server: Server) -> None:
    drawn_answer, likeliest = (ask(pivot_server, result=result) for result in ("sample", "argmax"))
    assert power_of(likeliest)["log_p"] >= power_of(drawn_answer)["log_p"]
    refined = power_of(ask(pivot_server, initial_ids=likeliest["output_ids"], result="argmax"))
    assert refined["log_p"] >= power_of(likeliest)["log_p"] - 1e-3
    assert (refined["params"]["draft"], refined["params"]["resampling"]) == (True, "multinomial")
    text = power_of(ask(pivot_server, initial_text="w7+3=0;"))
    assert text["law"] == "power"


BAD: list[tuple[Json, Json, str]] = [
    ({"particles": 300}, {}, "particles=300: 300 are 300, above this server's limits.max_particles of 256"),
    ({"particles": 65, "runs": 4}, {}, "particles=65: 4 runs of 65 are 260"),
    ({"initial_ids": [1, 2], "resampling": "systematic"}, {}, "resampling='systematic'"),
    ({"answer": "number"}, {}, "answer='number'"),
    ({"max_total_tokens": 4 * 48 - 1}, {}, "max_total_tokens=191: 4 answer(s)"),
    ({}, {"temperature": 0.5}, "temperature=0.5"),
    ({"initial_text": "x" * 60}, {}, "initial_text="),
    ({"steps": 3}, {}, "steps=3"),
]


@pytest.mark.parametrize(("smc", "sampling", "message"), BAD, ids=str)
def test_bad_input_is_a_400_before_any_token(
    pivot_server: Server, smc: Json, sampling: Json, message: str
) -> None:
    before = scheduled(pivot_server)
    params = {"max_new_tokens": 48, "custom_params": {**SMALL, **smc}, **sampling}
    response = post(pivot_server, "/generate", {"text": PROMPT, "sampling_params": params})
    assert response.status_code == httpx.codes.BAD_REQUEST, response.text
    assert message in response.json()["error"]["message"], response.text
    assert scheduled(pivot_server) == before


def test_tokens_for_fewer_runs_give_fewer_runs(pivot_server: Server) -> None:
    power = power_of(ask(pivot_server, runs=4, max_total_tokens=2 * 4 * 48))
    assert (power["runs"], power["stopped_by"], power["law"]) == (2, "max_total_tokens", "approximate")


def test_truncation_of_the_proposal_is_the_clients(pivot_server: Server) -> None:
    power = power_of(ask(pivot_server, sampling={"top_k": 2}, runs=2))
    assert (power["params"]["top_k"], power["law"]) == (2, "approximate")
