"""`return_statistics` of requests that SGLang answers itself, and of per-step policies.

The oracle is SGLang: its own log probabilities of the whole vocabulary beside every token, or, where
penalties change those, of a prefill pass over the answer. Deterministic but for the arithmetic of other
batches, with one G-test at a fixed number of draws: a false alarm in 1e5 runs.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import httpx
import numpy as np
import pytest
from sglang_power.policies import policies
from sglang_power.types import REPORTED_STATISTICS, FloatArray

from integration_tests.helpers.clients import (
    MESSAGES,
    PROMPT,
    QUICK,
    abort,
    client,
    events,
    post,
    power_of,
    raw_generate,
    reports,
    sse_lines,
    together,
)
from integration_tests.helpers.goodness_of_fit import REJECTED, g_test
from integration_tests.law_model import LETTERS
from integration_tests.law_model import PROMPT as LAW_PROMPT
from integration_tests.pivot.tokenizer import VOCAB_SIZE
from integration_tests.server import Server
from integration_tests.tests.test_policies_server import burst

pytestmark = pytest.mark.server

Json = dict[str, Any]

ASKED: Json = {"return_statistics": True}
LENGTH = 24
DRIFT = 2e-3
"""Of statistics between a decode step and another pass over the same tokens."""

FALSE_ALARM = 1e-5


def params(**sampling: Any) -> Json:
    """Greedy, unless said otherwise, with statistics."""
    return {"max_new_tokens": LENGTH, "temperature": 0, "custom_params": ASKED, **sampling}


def columns_of(answer: Json) -> dict[str, list[float]]:
    """The statistics of an answer, one value per token."""
    columns: dict[str, list[float]] = power_of(answer)["statistics"]
    assert tuple(columns) == REPORTED_STATISTICS
    assert {len(values) for values in columns.values()} == {len(answer["output_ids"])}
    return columns


def of_row(log_p: FloatArray, token: int) -> list[float]:
    """REPORTED_STATISTICS of a row in float64."""
    log_p = log_p - np.logaddexp.reduce(log_p)
    p, finite = np.exp(log_p), np.maximum(log_p, -1e4)
    entropy = float(-(p @ finite))
    second, first = np.sort(p)[-2:]
    return [float(log_p[token]), entropy, float(p @ (finite + entropy) ** 2), float(first - second)]


def rows_of(tops: list[Any], vocab: int, temperature: float = 1.0) -> list[FloatArray]:
    """Rows of SGLang's alternatives over the whole vocabulary, taken back to temperature 1."""
    rows = []
    for top in tops:
        row = np.full(vocab, -np.inf)
        for value, token, _ in top:
            row[token] = max(value, -1e4) * temperature
        rows.append(row)
    return rows


def check(answer: Json, rows: list[FloatArray], error: float) -> None:
    """Compare an answer's statistics with rows of log probabilities, up to a constant each."""
    found = np.array(list(columns_of(answer).values())).T
    wanted = [of_row(row, token) for row, token in zip(rows, answer["output_ids"], strict=True)]
    np.testing.assert_allclose(found, np.array(wanted), atol=error, rtol=error)


# --- the law that they are of -------------------------------------------------------------------------

DRAWS: dict[str, Json] = {
    "greedy": {"temperature": 0},
    "the law itself": {"temperature": 1.0},
    "hot": {"temperature": 2.0},
    "cold and truncated": {"temperature": 0.7, "top_p": 0.6, "top_k": 3},
    "min_p": {"temperature": 1.3, "min_p": 0.2},
    "biased": {"temperature": 1.0, "logit_bias": {"1": 2.0, "2": -100.0}},
    "masked": {"temperature": 0, "min_new_tokens": 5},
}


@pytest.mark.parametrize("sampling", DRAWS.values(), ids=list(DRAWS))
def test_statistics_are_of_sglangs_own_rows_at_temperature_one(law_server: Server, sampling: Json) -> None:
    vocab = 1 + len(LETTERS)
    body = {"return_logprob": True, "top_logprobs_num": vocab}
    answers = raw_generate(
        law_server, LAW_PROMPT, sampling_params=params(max_new_tokens=5, n=6, **sampling), **body
    )
    for answer in answers:
        tops = answer["meta_info"]["output_top_logprobs"]
        check(answer, rows_of(tops, vocab, sampling["temperature"] or 1.0), 2e-4)


def rescored(server: Server, prompt: list[int], ids: list[int]) -> list[FloatArray]:
    """Rows of a prefill pass, which knows neither penalties nor anything else of the request."""
    answer = raw_generate(
        server,
        None,
        input_ids=[*prompt, *ids],
        sampling_params={"max_new_tokens": 0},
        return_logprob=True,
        top_logprobs_num=VOCAB_SIZE,
        logprob_start_len=len(prompt) - 1,
    )
    return rows_of(answer["meta_info"]["input_top_logprobs"][-len(ids) :], VOCAB_SIZE)


def ids_of(text: str) -> list[int]:
    return [byte + 2 for byte in text.encode()]


PENALTIES: list[Json] = [
    {"frequency_penalty": 1.5},
    {"presence_penalty": 1.0, "logit_bias": {"54": 3.0}},
    {"repetition_penalty": 1.7, "min_new_tokens": 12},
]


@pytest.mark.parametrize("penalty", PENALTIES, ids=[next(iter(each)) for each in PENALTIES])
def test_penalties_act_and_are_not_in_the_statistics(pivot_server: Server, penalty: Json) -> None:
    plain = raw_generate(pivot_server, PROMPT, sampling_params={**params(**penalty), "custom_params": None})
    body = {"return_logprob": True, "top_logprobs_num": VOCAB_SIZE}
    answer = raw_generate(pivot_server, PROMPT, sampling_params=params(**penalty), **body)
    assert answer["output_ids"] == plain["output_ids"]
    rows = rescored(pivot_server, ids_of(PROMPT), answer["output_ids"])
    for position, row in enumerate(rows):
        for token, bias in penalty.get("logit_bias", {}).items():
            row[int(token)] += bias
        if position < penalty.get("min_new_tokens", 0):
            row[0] = -np.inf
    check(answer, rows, DRIFT)
    with pytest.raises(AssertionError, match="Not equal"):
        check(answer, rows_of(answer["meta_info"]["output_top_logprobs"], VOCAB_SIZE), 0.02)


def test_a_grammar_masks_the_rows(pivot_server: Server) -> None:
    answer = raw_generate(pivot_server, PROMPT, sampling_params=params(regex="w[0-9]{4}x"))
    columns = columns_of(answer)
    assert answer["text"].startswith("w")
    assert columns["log_p"][0] == pytest.approx(0.0, abs=1e-6), "nothing else was allowed"
    assert columns["entropy"][0] == pytest.approx(0.0, abs=1e-6)
    free = rescored(pivot_server, ids_of(PROMPT), answer["output_ids"])
    assert of_row(free[0], answer["output_ids"][0])[0] < -1e-3


# --- draws are SGLang's -------------------------------------------------------------------------------


def said(answer: Json) -> tuple[str, list[int], Json]:
    return answer["text"], answer["output_ids"], answer["meta_info"]["finish_reason"]


def test_greedy_answers_are_the_same_in_any_company(pivot_server: Server) -> None:
    prompts = [f"{family}{a}+{b}*2:" for family in "QR" for a in range(3, 7) for b in (2, 9)]
    plain = [{"prompt": text, "sampling_params": {**params(), "custom_params": None}} for text in prompts]
    alone = [said(answer) for answer in burst(pivot_server, plain)]
    with_own = [{"prompt": text, "sampling_params": params()} for text in prompts]
    others = [
        {"prompt": PROMPT, "sampling_params": {"max_new_tokens": LENGTH, "custom_params": custom}}
        for custom in ({"sampler": "top_n_sigma"}, {**QUICK, "seed": 1}, {"sampler": "top_p", "p": 0.7})
    ]
    mixed = burst(
        pivot_server, [each for trio in zip(with_own, plain, strict=True) for each in trio] + others
    )
    assert [said(answer) for answer in mixed[0 : 2 * len(prompts) : 2]] == alone
    assert [said(answer) for answer in mixed[1 : 2 * len(prompts) : 2]] == alone
    for reported in mixed[0 : 2 * len(prompts) : 2]:
        columns_of(reported)
    for unasked in mixed[1 : 2 * len(prompts) : 2]:
        assert not any("power" in key for key in unasked["meta_info"])


def test_draws_have_the_law_that_they_have_without(law_server: Server) -> None:
    """At temperature 0.7 with top_p 0.8; the law without truncation is rejected by the same test."""
    count, vocab = 600, 1 + len(LETTERS)
    one = params(max_new_tokens=1, temperature=0.7, top_p=0.8)
    row = raw_generate(
        law_server,
        LAW_PROMPT,
        sampling_params={"max_new_tokens": 1, "temperature": 0},
        return_logprob=True,
        top_logprobs_num=vocab,
    )
    (log_p,) = rows_of(row["meta_info"]["output_top_logprobs"], vocab)
    tempered = np.exp(log_p / 0.7) / np.exp(log_p / 0.7).sum()
    order = np.argsort(-tempered)
    before = np.cumsum(tempered[order]) - tempered[order]
    kept = np.zeros(vocab, dtype=bool)
    kept[order[before < 0.8]] = True
    law = np.where(kept, tempered, 0.0) / tempered[kept].sum()
    drawn = raw_generate(law_server, [LAW_PROMPT] * count, sampling_params=one)
    counts = np.bincount([answer["output_ids"][0] for answer in drawn], minlength=vocab).astype(float)
    assert g_test(counts, law) > FALSE_ALARM
    assert g_test(counts, np.exp(log_p) / np.exp(log_p).sum()) < REJECTED


def test_policies_bring_them_too_and_draw_the_same(pivot_server: Server) -> None:
    """Of the base law, whatever the policy makes of it."""
    custom: Json = {"sampler": "top_n_sigma", "n": 1.0, "seed": 5}
    sampling = {"max_new_tokens": LENGTH, "temperature": 1.0}
    bare = raw_generate(pivot_server, PROMPT, sampling_params={**sampling, "custom_params": custom})
    answer = raw_generate(
        pivot_server,
        PROMPT,
        sampling_params={**sampling, "custom_params": {**custom, **ASKED}},
        return_logprob=True,
        top_logprobs_num=VOCAB_SIZE,
    )
    assert said(answer) == said(bare)
    assert power_of(answer)["sampler"] == "top_n_sigma"
    assert "statistics" not in power_of(bare)
    check(answer, rows_of(answer["meta_info"]["output_top_logprobs"], VOCAB_SIZE), 2e-4)


# --- routes -------------------------------------------------------------------------------------------

PLACES: dict[str, tuple[Json, Json]] = {
    "custom_params": ({"custom_params": ASKED}, {}),
    "beside what SGLang reads": ({"custom_params": {**ASKED, "thinking_budget": 7}}, {}),
    "sampling_params": (ASKED, {}),
    "top level": ({}, ASKED),
    "nested": ({"custom_params": {"sglang_power": ASKED}}, {}),
    "JSON at the top level": ({}, {"sglang_power": json.dumps({**ASKED, "sampler": "none"})}),
}


@pytest.mark.parametrize(("sampling", "body"), PLACES.values(), ids=list(PLACES))
def test_places(pivot_server: Server, sampling: Json, body: Json) -> None:
    greedy = {"max_new_tokens": LENGTH, "temperature": 0}
    plain = raw_generate(pivot_server, PROMPT, sampling_params=greedy)
    answer = raw_generate(pivot_server, PROMPT, sampling_params={**greedy, **sampling}, **body)
    assert said(answer) == said(plain)
    columns_of(answer)
    assert power_of(answer)["sampler"] == "none"
    assert answer["meta_info"].keys() - plain["meta_info"].keys() == {"power"}


def test_streams_bring_those_of_the_tokens_so_far(pivot_server: Server) -> None:
    whole = raw_generate(pivot_server, PROMPT, sampling_params=params())
    chunks = events(pivot_server, "/generate", {"text": PROMPT, "stream": True, "sampling_params": params()})
    assert len(chunks) > 3
    final = columns_of(whole)
    for chunk in chunks:
        for name, values in columns_of(chunk).items():
            assert values == pytest.approx(final[name][: len(values)], abs=DRIFT)
    assert said(chunks[-1]) == said(whole)


def test_lists_ask_prompt_by_prompt(pivot_server: Server) -> None:
    """Plain prompts only, and beside samplers, which have another way through the plugin."""
    bare = {"max_new_tokens": LENGTH, "temperature": 0, "n": 2}
    asked = {**params(), "n": 2}
    policy = {**bare, "temperature": 1, "custom_params": {"sampler": "top_n_sigma", "seed": 1, **ASKED}}
    chain = {**bare, "temperature": 1, "custom_params": {**QUICK, "seed": 2}}
    alone = said(raw_generate(pivot_server, PROMPT, sampling_params={**bare, "n": 1}))
    for rows in ([bare, asked, asked], [bare, asked, policy, chain]):
        texts = [PROMPT] * len(rows)
        answers = raw_generate(pivot_server, texts, sampling_params=rows)
        body = {"text": texts, "stream": True, "sampling_params": rows}
        last = {chunk["index"]: chunk for chunk in events(pivot_server, "/generate", body)}
        for streamed in (answers, [last[i] for i in range(2 * len(rows))]):
            for place, answer in enumerate(streamed):
                row = rows[place // 2]
                assert ("statistics" in answer["meta_info"].get("power", {})) == (row in (asked, policy))
                if row in (asked, policy):
                    columns_of(answer)
                if row in (asked, bare):
                    assert said(answer) == alone


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("door", ["completions", "chat"])
def test_openai_clients_get_one_report_per_choice(pivot_server: Server, door: str, stream: bool) -> None:
    expected = columns_of(raw_generate(pivot_server, PROMPT, sampling_params=params()))
    openai: Any = client(pivot_server)
    create = openai.completions.create if door == "completions" else openai.chat.completions.create
    prompt: Json = {"prompt": [PROMPT, PROMPT]} if door == "completions" else {"messages": MESSAGES}
    shared: Json = {"model": "pivot", "max_tokens": LENGTH, "temperature": 0, "n": 2, **prompt}
    response = create(**shared, stream=stream, extra_body={"custom_params": ASKED})
    bare = create(**shared, stream=stream)
    if not stream:
        assert "power" not in (bare.model_dump()["metadata"] or {})
        found, texts = reports(response), [choice.model_dump() for choice in response.choices]
        assert texts == [choice.model_dump() for choice in bare.choices]
    else:
        chunks, plain = list(response), list(bare)
        found = reports([chunk for chunk in chunks if chunk.choices][-1])
        assert pieces(chunks) == pieces(plain)
    assert len(found) == (4 if door == "completions" else 2)
    for report in found:
        assert report["sampler"] == "none"
        for name, values in report["statistics"].items():
            assert values == pytest.approx(expected[name], abs=DRIFT)


def pieces(chunks: list[Any]) -> dict[int, str]:
    """The text of every choice of a stream."""
    texts: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            piece = choice.text if hasattr(choice, "text") else choice.delta.content
            texts[choice.index] = texts.get(choice.index, "") + (piece or "")
    return texts


def test_metadata_survives_gateways(pivot_server: Server) -> None:
    chat = client(pivot_server).chat.completions.create(
        model="pivot",
        messages=MESSAGES,
        max_tokens=LENGTH,
        metadata={"sglang_power": json.dumps(ASKED)},
    )
    (report,) = reports(chat)
    assert chat.usage is not None
    assert len(report["statistics"]["log_p"]) == chat.usage.completion_tokens


# --- ends ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [{"stop": ["*2"]}, {"stop_token_ids": [52]}, {"ignore_eos": True}])
def test_stops_have_statistics_up_to_their_last_token(pivot_server: Server, stop: Json) -> None:
    answer = raw_generate(pivot_server, PROMPT, sampling_params=params(**stop))
    assert len(columns_of(answer)["log_p"]) == answer["meta_info"]["completion_tokens"]


def test_an_abort_keeps_those_that_there_were(pivot_server: Server) -> None:
    for number in range(20):
        rid = f"statistics-abort-{number}"
        sampling = params(max_new_tokens=200, ignore_eos=True)
        lines = sse_lines(
            pivot_server,
            "/generate",
            {"text": PROMPT, "rid": rid, "stream": True, "sampling_params": sampling},
        )
        next(lines)
        abort(pivot_server, rid=rid)
        *_, last, _ = lines
        answer: Json = json.loads(last.removeprefix("data: "))
        columns_of(answer)
        if answer["meta_info"]["finish_reason"]["type"] == "abort":
            return
    raise AssertionError("none of 20 requests was aborted in time")


def test_prompts_in_chunks_and_pages(prose_server: Server) -> None:
    """Their middle chunks draw tokens that nobody sees."""
    prompts = [f"{LETTERS[number % 4]} " * 150 for number in range(6)]
    calls = [
        functools.partial(raw_generate, prose_server, text, sampling_params=params(ignore_eos=True))
        for text in prompts
    ]
    for answer in together(calls):
        columns = columns_of(answer)
        assert len(columns["log_p"]) == LENGTH
        assert all(value is not None and value <= 0 for value in columns["log_p"])


# --- refusals -----------------------------------------------------------------------------------------

REFUSED: list[tuple[str, Json, list[str]]] = [
    ("/generate", {"text": PROMPT, "return_statistics": 1}, ["return_statistics=1", "true nor false"]),
    (
        "/generate",
        {"text": PROMPT, "stream": True, "sampling_params": {"custom_params": {"return_statistics": "yes"}}},
        ["custom_params.return_statistics='yes'", "Leave it out"],
    ),
    (
        "/generate",
        {"text": PROMPT, "sampling_params": {"custom_params": {**QUICK, **ASKED}}},
        ["custom_params.return_statistics=True", "power makes an answer", '"none"'],
    ),
    (
        "/v1/completions",
        {"model": "pivot", "prompt": PROMPT, "custom_params": {"sampler": "vote", "samples": 2, **ASKED}},
        ["custom_params.return_statistics=True", "return_rows"],
    ),
    (
        "/v1/chat/completions",
        {"model": "pivot", "messages": MESSAGES, "custom_params": ASKED, "return_statistics": False},
        ["contradicts"],
    ),
    (
        "/generate",
        {"text": PROMPT, "return_statistics": True, "custom_logit_processor": "x"},
        ["custom_logit_processor='x'", "or return_statistics"],
    ),
    ("/generate", {"text": PROMPT, **ASKED, "sampling_params": {"beam_width": 2}}, ["beam_width=2"]),
    ("/v1/responses", {"model": "pivot", "input": PROMPT, **ASKED}, ["no room", "/generate"]),
    ("/api/chat", {"model": "pivot", "messages": MESSAGES, **ASKED}, ["no room", "/generate"]),
]


@pytest.mark.parametrize(("path", "body", "said"), REFUSED)
def test_what_cannot_be_served_is_refused(
    pivot_server: Server, path: str, body: Json, said: list[str]
) -> None:
    response = post(pivot_server, path, body)
    assert response.status_code == httpx.codes.BAD_REQUEST, response.text
    message = json.dumps(response.json()).replace('\\"', '"')
    for part in said:
        assert part in message


def test_pairs_are_samplers_of_whole_answers(pivot_server: Server) -> None:
    assert "kl_guided" in policies()
    custom = {"sampler": "kl_guided", "prompt_without": "R", **ASKED}
    response = post(pivot_server, "/generate", {"text": PROMPT, "sampling_params": {"custom_params": custom}})
    assert response.status_code == httpx.codes.BAD_REQUEST
    assert "kl_guided makes an answer" in response.text
