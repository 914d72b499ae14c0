"""Per-step policies inside SGLang's ordinary request path: mixed batches, SGLang's own features, power
proposals and metrics. Their laws are in law_tests/test_policy_law_server.py, kl_guided in
test_kl_guided_server.py, aborts and clients that leave in test_policies_interrupted.py.

Deterministic: draws are a function of (seed, position), so what a request answers alone it answers in any
batch, near ties apart.
"""

from __future__ import annotations

import functools
import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import httpx
import numpy as np
import pytest
from sglang_power.policies import Policy, Row, policies

from integration_tests.helpers.clients import (
    MESSAGES,
    PROMPT,
    PROMPT_Q,
    QUICK,
    client,
    events,
    generate,
    metric,
    power_of,
    raw_generate,
    reports,
    scheduled,
    sse_lines,
    together,
)
from integration_tests.helpers.third_party_policy import TopA
from integration_tests.pivot.tokenizer import VOCAB_SIZE
from integration_tests.server import Server

pytestmark = pytest.mark.server

Json = dict[str, Any]

KINDS: tuple[type[Policy], ...] = (*policies().values(), TopA)
NATIVE = tuple(kind for kind in KINDS if "twin" not in kind.needs)
"""Policies that SGLang runs as requests of one row."""
IN_PROPOSALS = frozenset(kind.name() for kind in NATIVE if kind.in_proposals)
"""Policies that may be the base of another sampler."""

REPORT_FIELDS = {"sampler", "params", "seed", "law", "fallback_reason", "weight_version", "version"}
"""`meta_info.power` of a policy: the documented names."""

COST_FIELDS = {
    "decoded_tokens",
    "prefilled_tokens",
    "wasted_tokens",
    "depth",
    "children",
    "log_p",
    "stopped_by",
}
"""Beside them where an answer costs more than its own tokens."""

SIGMA: Json = {"sampler": "top_n_sigma", "n": 1.5, "seed": 5}
LENGTH = 16


def of(kind: type[Policy], seed: int) -> Json:
    """custom_params of a policy's last example."""
    return {"sampler": kind.name(), **kind.examples[-1], "seed": seed}


def body_of(custom: Json | None, prompt: str = PROMPT, *, body: Json | None = None, **sampling: Any) -> Json:
    """A /generate request: `sampling` on top of SGLang's parameters, `body` beside them."""
    params = {"max_new_tokens": LENGTH, **sampling, **({} if custom is None else {"custom_params": custom})}
    return {"prompt": prompt, "sampling_params": params, **(body or {})}


def ask(server: Server, custom: Json | None, prompt: str = PROMPT, **more: Any) -> Any:
    """The answer to `body_of`."""
    return raw_generate(server, **body_of(custom, prompt, **more))


def burst(server: Server, bodies: Sequence[Json]) -> list[Any]:
    """Answers of requests that are sent at once."""
    return together([functools.partial(raw_generate, server, **body) for body in bodies])


def said(answer: Json) -> tuple[str, list[int], Json]:
    """What an answer says: text, ids, finish reason."""
    return answer["text"], answer["output_ids"], answer["meta_info"]["finish_reason"]


# --- what every answer says of itself -----------------------------------------------------------------


def test_an_answer_says_which_policy_ran(pivot_server: Server) -> None:
    """The reported parameters and seed are a request for the same answer."""
    answers = burst(pivot_server, [body_of(of(kind, 7)) for kind in KINDS])
    again = []
    for kind, answer in zip(KINDS, answers, strict=True):
        power = power_of(answer)
        assert set(power) == REPORT_FIELDS | (COST_FIELDS if "twin" in kind.needs else set())
        assert (power["sampler"], power["seed"], power["law"]) == (kind.name(), 7, "policy")
        assert power["params"] == kind.model_validate(kind.examples[-1]).parameters
        assert (power["fallback_reason"], power["weight_version"]) == (None, "default")
        named = {key: value for key, value in power["params"].items() if value is not None}
        again.append(body_of({"sampler": power["sampler"], "seed": power["seed"], **named}))
    assert [said(answer) for answer in burst(pivot_server, again)] == [said(answer) for answer in answers]


def test_a_seed_that_nobody_named_repeats_the_answer(pivot_server: Server) -> None:
    custom = {"sampler": "top_n_sigma", "n": 3.0}
    first = ask(pivot_server, custom)
    again = ask(pivot_server, {**custom, "seed": power_of(first)["seed"]})
    assert said(again) == said(first)
    seeds = {power_of(answer)["seed"] for answer in burst(pivot_server, [body_of(custom)] * 4)}
    assert len(seeds) == 4


def test_openai_clients_name_policies_and_seeds(pivot_server: Server) -> None:
    expected = ask(pivot_server, SIGMA, temperature=0.8)
    extra = {"custom_params": {"sampler": "top_n_sigma", "n": 1.5}}
    asked: Json = {"model": "pivot", "max_tokens": LENGTH, "temperature": 0.8, "seed": 5, "extra_body": extra}
    chat = client(pivot_server).chat.completions.create(messages=MESSAGES, **asked)
    completion = client(pivot_server).completions.create(prompt=PROMPT, **asked)
    assert chat.choices[0].message.content == completion.choices[0].text == expected["text"]
    for response in (chat, completion):
        assert reports(response) == [power_of(expected)]
        assert response.usage is not None
        assert response.usage.prompt_tokens == len(PROMPT)
        assert response.usage.completion_tokens == expected["meta_info"]["completion_tokens"]


# --- mixed batches ------------------------------------------------------------------------------------

LOGPROBS = {"return_logprob": True, "top_logprobs_num": VOCAB_SIZE}
SEEDED = [
    body_of(None, PROMPT, temperature=0),
    body_of(None, PROMPT_Q, temperature=0, body=LOGPROBS),
    body_of(None, PROMPT + "g4;", temperature=0, body=LOGPROBS, logit_bias={"54": 4.0}),
    *[body_of(of(kind, 20), PROMPT if i % 2 else PROMPT_Q) for i, kind in enumerate(KINDS)],
    body_of(SIGMA, temperature=0.7, body=LOGPROBS),
    body_of({**SIGMA, "seed": 6}, temperature=1.5, top_k=4, body=LOGPROBS),
    body_of(of(policies()["entropix"], 21), body=LOGPROBS),
    *[body_of({**QUICK, "seed": seed}) for seed in (1, 2)],
]
"""Greedy rows of SGLang's own sampler, all policies, chains; some with log probabilities."""

SAMPLED = [body_of(None, temperature=t, body=LOGPROBS) for t in (0.7, 1.5)]
"""SGLang's own sampler draws these; they have no seed."""


def ranked_logprobs(answer: Json) -> list[dict[int, float]]:
    """For each token the log probabilities of the whole vocabulary; they agree with the token's own."""
    meta = answer["meta_info"]
    tables = [{token: value for value, token, _ in top} for top in meta["output_top_logprobs"]]
    assert [token for _, token, _ in meta["output_token_logprobs"]] == answer["output_ids"]
    for table, (value, token, _) in zip(tables, meta["output_token_logprobs"], strict=True):
        assert len(table) == VOCAB_SIZE
        assert value == pytest.approx(table[token], abs=1e-6)
    return tables


def test_a_mixed_batch_answers_what_each_request_answers_alone(pivot_server: Server) -> None:
    """All in one list, so that they reach the scheduler together and share its batches."""
    bodies = [*SEEDED, *SAMPLED]
    alone = [raw_generate(pivot_server, **body) for body in SEEDED]
    mixed = raw_generate(
        pivot_server,
        [body["prompt"] for body in bodies],
        sampling_params=[body["sampling_params"] for body in bodies],
        return_logprob=[body.get("return_logprob", False) for body in bodies],
        top_logprobs_num=[body.get("top_logprobs_num", 0) for body in bodies],
    )
    assert [said(answer) for answer in mixed[: len(SEEDED)]] == [said(answer) for answer in alone]
    for body, answer, reference in zip(SEEDED, mixed, alone, strict=False):
        assert ("power" in answer["meta_info"]) == ("custom_params" in body["sampling_params"])
        if "return_logprob" in body:
            for ours, theirs in zip(ranked_logprobs(answer), ranked_logprobs(reference), strict=True):
                assert ours == pytest.approx(theirs, abs=1e-4)
    for answer in mixed[len(SEEDED) :]:
        ranked_logprobs(answer)
        assert "power" not in answer["meta_info"]


def test_sampling_masks_beside_policies(pivot_server: Server) -> None:
    """SGLang makes them for whole batches; they go to the rows that asked."""
    masked = body_of(None, temperature=0, top_k=5, body={"return_sampling_mask": True})
    expected = raw_generate(pivot_server, **masked)
    rows = [masked, *[body_of({**SIGMA, "seed": seed}, ignore_eos=True) for seed in range(4)], masked]
    first, *policy_rows, last = burst(pivot_server, rows)
    for answer in (first, last):
        assert said(answer) == said(expected)
        for key in ("output_token_sampling_mask", "output_token_sampling_mask_length"):
            assert answer["meta_info"][key] == expected["meta_info"][key]
    assert not any("output_token_sampling_mask" in answer["meta_info"] for answer in policy_rows)


# --- bans ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "policy",
    [{"sampler": "top_n_sigma", "n": 1.0}, {"sampler": "min_k"}, {"sampler": "temperature", "value": 40.0}],
)
def test_banned_tokens_do_not_count(pivot_server: Server, policy: Json) -> None:
    """Sixty draws from a row with ten banned tokens: all in the support of the rule without these."""
    plain = raw_generate(pivot_server, **body_of(None, temperature=1.0, max_new_tokens=1, body=LOGPROBS))
    row = ranked_logprobs(plain)[0]
    banned = sorted(row, key=lambda token: row[token])[-20::2]
    allowed = np.array([-np.inf if token in banned else row[token] for token in range(VOCAB_SIZE)])
    rule = policies()[policy["sampler"]]
    law = rule(**{key: value for key, value in policy.items() if key != "sampler"}).law(Row(allowed))
    bias = {str(token): -100 for token in banned}
    bodies = [
        body_of({**policy, "seed": seed}, max_new_tokens=1, logit_bias=bias, ignore_eos=True)
        for seed in range(60)
    ]
    drawn = [answer["output_ids"][0] for answer in burst(pivot_server, bodies)]
    assert all(law[token] > 0 for token in drawn)
    assert not set(drawn) & set(banned)


# --- SGLang's own features ----------------------------------------------------------------------------

FEATURES: dict[str, Json] = {
    "nothing": {},
    "stop": {"stop": ["6;A", "4;g"]},
    "stop_token_ids": {"stop_token_ids": [61]},
    "stop_regex": {"stop_regex": "g\\d;A"},
    "ignore_eos": {"ignore_eos": True},
    "min_new_tokens": {"min_new_tokens": 15},
    "max_new_tokens": {"max_new_tokens": 3},
    "frequency_penalty": {"frequency_penalty": 1.5},
    "repetition_penalty": {"repetition_penalty": 1.7},
    "regex": {"regex": "w[0-9]{4}x"},
    "json_schema": {"json_schema": '{"type": "array", "items": {"type": "boolean"}}'},
    "logit_bias": {"logit_bias": {"54": 8.0, "105": -100.0}},
    "no_stop_trim": {"stop": [";A"], "no_stop_trim": True},
}


def featured(server: Server, custom: Json | None, **more: Any) -> dict[str, Any]:
    """What is answered with each of FEATURES.

    Penalties one by one: those of SGLang's overlap schedule count the newest token a step late or not,
    according to what else the batch holds (`cumulate_penalty_output_tokens`, 0.5.23).
    """
    bodies = {name: body_of(custom, **feature, **more) for name, feature in FEATURES.items()}
    alone = [name for name in bodies if "penalty" in name]
    others = [name for name in bodies if name not in alone]
    found = dict(zip(others, burst(server, [bodies[name] for name in others]), strict=True))
    found |= {name: raw_generate(server, **bodies[name]) for name in alone}
    return {name: said(found[name]) for name in FEATURES}


UNTYPICAL = ".*+*2g"
"""Typical sampling of mass 0.64 drops the most likely token behind it, 50, and keeps 53."""


def test_every_policy_is_greedy_at_temperature_zero(pivot_server: Server) -> None:
    """On its own and as a base of vote; SGLang hands temperature 0 on as top_k 1 at temperature 1."""
    zero: Json = {"temperature": 0, "max_new_tokens": 1}
    typical = {"sampler": "typical", "mass": 0.64}
    for prompt, named in ((UNTYPICAL, typical), *((text, None) for text in (UNTYPICAL, PROMPT, PROMPT_Q))):
        expected = ask(pivot_server, None, prompt, **zero)["output_ids"]
        each = [of(kind, 3) for kind in NATIVE] if named is None else [named]
        bases = [one for one in each if one["sampler"] in IN_PROPOSALS]
        votes: list[Json] = [
            {"sampler": "vote", "answer": "text", "samples": 2, "base": {**base, "seed": None}}
            for base in bases
        ]
        answers = burst(pivot_server, [body_of(custom, prompt, **zero) for custom in (*each, *votes)])
        assert [answer["output_ids"] for answer in answers] == [expected] * len(answers), prompt
    assert ask(pivot_server, typical, UNTYPICAL, **zero)["output_ids"] == [50]
    control = ask(pivot_server, typical, UNTYPICAL, temperature=1.0, top_k=1, max_new_tokens=1)
    assert control["output_ids"] == [53], "the most likely token of those that the policy keeps"


def test_the_policy_greedy_is_temperature_zero_with_every_feature(pivot_server: Server) -> None:
    """Stops, penalties, grammars and biases do to a policy's rows what they do to SGLang's own."""
    policy: Json = {"sampler": "greedy", "seed": 1}
    zero: Json = {"temperature": 0}
    ours, theirs = (featured(pivot_server, custom, **more) for custom, more in ((policy, {}), (None, zero)))
    assert ours == theirs
    assert [name for name in FEATURES if ours[name] == ours["nothing"]] == ["nothing"], "every feature shows"


def test_no_policy_leaves_a_grammar(pivot_server: Server) -> None:
    """Not even by insertion."""
    pattern = "g[0-9]{2}\n[A-Z]w\n"
    customs = [of(kind, seed) for kind in NATIVE for seed in (1, 2)]
    inserting = {"entropy_threshold": 0.0, "varentropy_threshold": 100.0, "insert_ids": [105, 105]}
    customs.append({"sampler": "entropix", **inserting, "seed": 1})
    answers = burst(pivot_server, [body_of(custom, regex=pattern) for custom in customs])
    for custom, answer in zip(customs, answers, strict=True):
        assert re.fullmatch(pattern, answer["text"]), (custom, answer["text"])
    assert len({answer["text"] for answer in answers}) > 3


def test_penalties_and_biases_come_before_the_policy(pivot_server: Server) -> None:
    """top_k = 1 takes the token that the bias made the largest; SGLang's own top_k = 1 agrees."""
    bias: Json = {"logit_bias": {"50": 30.0, "12": 29.0}, "frequency_penalty": 0.7}
    policy = ask(pivot_server, {"sampler": "top_k", "k": 1, "seed": 1}, **bias)
    own = ask(pivot_server, {"sampler": "temperature", "value": 1.0, "seed": 1}, **bias, top_k=1)
    plain = ask(pivot_server, None, **bias, temperature=0)
    assert policy["text"] == own["text"] == plain["text"]
    assert set(plain["text"]) == {"0", "\n"}


def test_stop_strings_and_minimum_length_of_draws(pivot_server: Server) -> None:
    stops = [body_of({**SIGMA, "seed": seed}, stop=[";w", "A"]) for seed in range(6)]
    longer = [body_of({**SIGMA, "seed": seed}, min_new_tokens=LENGTH) for seed in range(6)]
    answers = burst(pivot_server, [*stops, *longer])
    for answer in answers[:6]:
        assert answer["meta_info"]["finish_reason"]["matched"] in (";w", "A")
        assert not re.search(";w|A", answer["text"])
    assert {len(answer["output_ids"]) for answer in answers[6:]} == {LENGTH}
    assert not any(0 in answer["output_ids"] for answer in answers[6:])


def test_n_samples_have_seeds_of_their_own_and_one_prompt(pivot_server: Server) -> None:
    draw = random.Random("n samples")
    prompt = "R7" + "".join(f"{draw.choice('+-*')}{draw.randrange(10)}" for _ in range(20)) + ":"
    before, counted = scheduled(pivot_server), metric(pivot_server, "sglang:num_requests_total")
    answers = ask(pivot_server, {**SIGMA, "n": 4.0}, prompt, n=3)
    assert scheduled(pivot_server) - before == 4, "the prompt, and three samples"
    assert metric(pivot_server, "sglang:num_requests_total") - counted == 3
    assert len({answer["text"] for answer in answers}) == 3
    assert {power_of(answer)["seed"] for answer in answers} == {5}
    assert {answer["meta_info"]["cached_tokens"] for answer in answers} == {len(prompt) - 1}
    assert ask(pivot_server, {**SIGMA, "n": 4.0}, prompt)["text"] == answers[0]["text"]
    response = client(pivot_server).completions.create(
        model="pivot",
        prompt=prompt,
        n=3,
        max_tokens=LENGTH,
        extra_body={"custom_params": {**SIGMA, "n": 4.0}},
    )
    assert [choice.text for choice in response.choices] == [answer["text"] for answer in answers]
    assert reports(response) == [power_of(answer) for answer in answers]
    assert response.usage is not None
    assert response.usage.prompt_tokens == len(prompt)
    assert response.usage.completion_tokens == sum(a["meta_info"]["completion_tokens"] for a in answers)


def test_a_list_of_prompts_mixes_policies(pivot_server: Server) -> None:
    params = [body_of(of(kind, 3))["sampling_params"] for kind in KINDS] + [{"max_new_tokens": 4}]
    answers = raw_generate(pivot_server, [PROMPT] * len(params), sampling_params=params)
    named = [(answer["meta_info"].get("power") or {}).get("sampler") for answer in answers]
    assert named == [kind.name() for kind in KINDS] + [None]


# --- streams ------------------------------------------------------------------------------------------


def test_generate_streams_cumulative_text(pivot_server: Server) -> None:
    expected = ask(pivot_server, SIGMA, max_new_tokens=64, ignore_eos=True)
    body = body_of(SIGMA, max_new_tokens=64, ignore_eos=True, body={"stream": True})
    chunks = events(pivot_server, "/generate", {**body, "text": body.pop("prompt")})
    assert len(chunks) > 3
    for earlier, later in pairwise(chunks):
        assert later["text"].startswith(earlier["text"])
        assert later["output_ids"][: len(earlier["output_ids"])] == earlier["output_ids"]
    assert [power_of(chunk) for chunk in chunks] == [power_of(expected)] * len(chunks)
    assert said(chunks[-1]) == said(expected)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("n", [1, 2])
def test_openai_streams_carry_the_report_on_the_last_chunk(pivot_server: Server, path: str, n: int) -> None:
    expected = ask(pivot_server, SIGMA, n=n)
    answers = expected if isinstance(expected, list) else [expected]
    asked = {"messages": MESSAGES} if "chat" in path else {"prompt": PROMPT}
    body = {"model": "pivot", **asked, "max_tokens": LENGTH, "n": n, "stream": True, "custom_params": SIGMA}
    lines = list(sse_lines(pivot_server, path, {**body, "stream_options": {"include_usage": True}}))
    assert not any(line.startswith(":") for line in lines), "there is no progress to tell"
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    texts = [""] * n
    for chunk in chunks:
        for choice in chunk["choices"]:
            piece = choice["text"] if "text" in choice else choice["delta"].get("content")
            texts[choice["index"]] += piece or ""
    assert texts == [answer["text"] for answer in answers]
    carrying = [chunk for chunk in chunks if "power" in (chunk.get("metadata") or {})]
    assert carrying == [[chunk for chunk in chunks if chunk["choices"]][-1]]
    assert carrying[0]["metadata"]["power"] == [power_of(answer) for answer in answers]
    usage = chunks[-1]["usage"]
    assert usage["prompt_tokens"] == len(PROMPT)
    assert usage["completion_tokens"] == sum(answer["meta_info"]["completion_tokens"] for answer in answers)


def test_the_stock_client_streams_log_probabilities(pivot_server: Server) -> None:
    answer = ask(pivot_server, SIGMA, max_new_tokens=32, temperature=0.8, body={"return_logprob": True})
    stream = client(pivot_server).chat.completions.create(
        model="pivot",
        messages=MESSAGES,
        max_tokens=32,
        temperature=0.8,
        stream=True,
        logprobs=True,
        top_logprobs=2,
        extra_body={"custom_params": SIGMA},
    )
    found = [
        token.logprob
        for chunk in stream
        for choice in chunk.choices
        if choice.logprobs is not None
        for token in choice.logprobs.content or []
    ]
    expected = [value for value, _, _ in answer["meta_info"]["output_token_logprobs"]]
    assert found == pytest.approx(expected, abs=1e-4), "the end token, which has no text, included"


# --- power proposals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("proposal", "law"),
    [
        ({"sampler": "edt", "theta": 5.0, "base": 0.3}, "power"),
        ({"sampler": "top_k", "k": 2}, "approximate"),
    ],
    ids=["edt", "top_k"],
)
def test_power_with_a_policy_in_its_proposals(pivot_server: Server, proposal: Json, law: str) -> None:
    chain: Json = {"proposal_temperature": 2.0, "return_trace": True}
    named: Json = {**chain, "proposal_policy": proposal, "early_rejection": True}
    answer, again = together([functools.partial(generate, pivot_server, seed=30, **named)] * 2)
    power = power_of(answer)
    assert (power["sampler"], power["law"], power["stopped_by"]) == ("power", law, "completed")
    assert power["params"]["proposal_policy"] == proposal
    assert power["params"]["early_rejection"] is False
    assert power["early_rejected"] == power["saved_tokens_max"] == 0
    assert said(again) == said(answer)
    without = power_of(generate(pivot_server, seed=30, early_rejection=False, **chain))
    assert without["params"]["proposal_policy"] is None
    assert [step["proposal_ids"] for step in power["trace"]] != [
        step["proposal_ids"] for step in without["trace"]
    ]


def test_power_weighs_proposals_by_the_law_of_the_policy(pivot_server: Server) -> None:
    """log_w of a proposal is alpha log p - log q of its ids; greedy proposals have log q = 0."""
    named: Json = {"proposal_policy": {"sampler": "greedy"}, "return_trace": True, "steps": 4}
    power = power_of(generate(pivot_server, seed=31, **named))
    greedy = ask(pivot_server, None, temperature=0, max_new_tokens=48)
    assert power["log_target"] == pytest.approx(4 * power["log_p"], abs=1e-3)
    for step in power["trace"]:
        assert step["proposal_ids"] == greedy["output_ids"][step["cut"] :][: step["proposal_length"]]
        assert step["log_w_proposal"] == pytest.approx(step["log_w_current"], abs=1e-3)


# --- metrics ------------------------------------------------------------------------------------------


def test_answers_are_counted_by_sampler_and_finish(pivot_server: Server) -> None:
    def counts() -> Counter[tuple[str, str]]:
        series = r'^sglang_power_policy_answers_total{finish="(\w+)",sampler="(\w+)"} (\S+)$'
        text = httpx.get(pivot_server.url + "/metrics", timeout=60, follow_redirects=True).text
        found = re.findall(series, text, re.MULTILINE)
        return Counter({(sampler, finish): int(float(count)) for finish, sampler, count in found})

    before = counts()
    bodies = [body_of(of(kind, 40), n=1 + i % 2, max_new_tokens=14) for i, kind in enumerate(KINDS)]
    answers = [
        answer
        for found in burst(pivot_server, bodies)
        for answer in (found if isinstance(found, list) else [found])
    ]
    expected = Counter(
        (power_of(answer)["sampler"], answer["meta_info"]["finish_reason"]["type"]) for answer in answers
    )
    assert counts() - before == expected
    assert len(answers) > len(KINDS)


def test_kernel_calls_are_counted_by_backend(pivot_server: Server) -> None:
    def calls(function: str, **labels: str) -> float:
        return metric(pivot_server, "sglang_power_kernel_calls_total", function=function, **labels)

    functions = ("sample_rows", "row_statistics", "truncation_bounds")
    before = {function: calls(function) for function in functions}
    answer = ask(pivot_server, SIGMA, ignore_eos=True)
    after = {function: calls(function) for function in functions}
    steps = answer["meta_info"]["completion_tokens"]
    assert after["sample_rows"] - before["sample_rows"] >= steps
    assert after["row_statistics"] - before["row_statistics"] >= steps
    assert after["truncation_bounds"] == before["truncation_bounds"], "nothing to truncate"
    ask(pivot_server, SIGMA, ignore_eos=True, top_k=4)
    assert calls("truncation_bounds") - after["truncation_bounds"] >= steps
    backends = [calls("sample_rows", backend=backend) for backend in ("torch", "triton", "flashinfer")]
    assert sum(backends) == calls("sample_rows"), "every call names its backend"
