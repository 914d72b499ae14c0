"""Power sampling through every door that a user has: /generate, the stock `openai` client, the Engine.

Counters are compared exactly. Where a test relies on draws, its seeds are fixed; the few statements about
chance hold for those seeds on every machine up to floating-point noise at a draw's boundary.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from sglang_power.types import REPORTED_STATISTICS

from integration_tests.helpers.clients import (
    EOS,
    HTTP,
    MESSAGES,
    PARAM_FIELDS,
    POWER_FIELDS,
    PROMPT,
    PROMPT_Q,
    QUICK,
    client,
    generate,
    metric,
    post,
    power_of,
    raw_generate,
    reports,
    together,
)
from integration_tests.server import PIVOT_MODEL, Server

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[2]
ENGINE_TIMEOUT_S = 300


def complete(server: Server, prompt: Any = PROMPT, **fields: Any) -> Any:
    """A completion through the stock client."""
    return client(server).completions.create(model="pivot", prompt=prompt, max_tokens=48, **fields)


def chat(server: Server, **fields: Any) -> Any:
    """A chat completion through the stock client."""
    return client(server).chat.completions.create(model="pivot", messages=MESSAGES, max_tokens=48, **fields)


def ids_of(text: str) -> list[int]:
    """Token ids of ASCII text under the pivot's byte tokenizer."""
    return [byte + 2 for byte in text.encode()]


# --- what every answer says of itself ---


def test_an_answer_says_which_sampler_ran_and_nothing_undocumented(pivot_server: Server) -> None:
    answer = generate(pivot_server, seed=1)
    power = power_of(answer)
    assert set(power) == POWER_FIELDS
    assert power["sampler"] == "power"
    assert power["params"].keys() >= PARAM_FIELDS
    assert (power["seed"], power["law"], power["stopped_by"]) == (1, "power", "completed")
    assert power["fallback_reason"] is None
    assert power["params"]["proposal_temperature"] == pytest.approx(1 / 4)


def test_counters_add_up(pivot_server: Server) -> None:
    power = power_of(generate(pivot_server, seed=2, early_rejection=False))
    assert power["steps"] == power["proposals"] >= QUICK["steps"]
    assert power["acceptance_rate"] == power["accepted"] / power["proposals"]
    assert power["early_rejected"] == power["saved_tokens_max"] == power["wasted_tokens"] == 0
    steps = power["decoded_tokens"] + power["children"]
    assert power["depth"] == steps, "one chain waits for every token and for every launch"
    assert power["children"] >= 1 + power["proposals"], "the prompt, and one child per proposal"
    assert power["log_target"] == pytest.approx(power["params"]["alpha"] * power["log_p"])


def test_text_ids_usage_and_finish_reason_agree(pivot_server: Server) -> None:
    answer = generate(pivot_server, seed=3)
    meta = answer["meta_info"]
    assert answer["output_ids"] == [*ids_of(answer["text"]), EOS]
    assert meta["completion_tokens"] == len(answer["output_ids"])
    assert meta["prompt_tokens"] == len(PROMPT)
    assert meta["finish_reason"] == {"type": "stop", "matched": EOS}
    cut = generate(pivot_server, seed=3, max_new_tokens=5)
    assert cut["meta_info"]["finish_reason"] == {"type": "length", "length": 5}
    assert len(cut["output_ids"]) == 5


def test_meta_info_has_what_plain_answers_have(pivot_server: Server) -> None:
    """Apart from timings of a single pass through the scheduler, which a chain does not have."""
    asked = {"return_logprob": True, "top_logprobs_num": 1}
    plain = raw_generate(pivot_server, sampling_params={"max_new_tokens": 4}, **asked)["meta_info"]
    params = {"max_new_tokens": 4, "custom_params": QUICK}
    power = raw_generate(pivot_server, sampling_params=params, **asked)["meta_info"]
    timings = {key for key in plain if key.endswith(("_time", "_ts", "_latency", "_throughput", "_wait"))}
    assert plain.keys() - timings <= power.keys()


# --- ways to name the sampler ---


NAMINGS: dict[str, dict[str, Any]] = {
    "custom_params": {"sampling_params": {"max_new_tokens": 48, "custom_params": {**QUICK, "seed": 5}}},
    "custom_params_preset": {
        "sampling_params": {"max_new_tokens": 48, "custom_params": {"preset": "short", "seed": 5}}
    },
    "top_level_sampler": {
        "sampler": "power",
        "sampling_params": {"max_new_tokens": 48, "custom_params": {**QUICK, "seed": 5}},
    },
    "top_level_preset": {"preset": "short", "sampling_params": {"max_new_tokens": 48, "sampling_seed": 5}},
    "sampling_params_preset": {
        "sampling_params": {"max_new_tokens": 48, "preset": "short", "sampling_seed": 5}
    },
}


def test_every_way_to_name_it_runs_the_same_chain(pivot_server: Server) -> None:
    answers = {
        name: raw_generate(pivot_server, sampling_params=body.pop("sampling_params"), **body)
        for name, body in ((name, dict(body)) for name, body in NAMINGS.items())
    }
    for name, answer in answers.items():
        assert power_of(answer)["params"]["steps"] == 2, name
        assert power_of(answer)["seed"] == 5, name
    assert len({answer["text"] for answer in answers.values()}) == 1, answers


@pytest.mark.parametrize("where", ["body", "sampling_params"])
def test_the_bare_name_runs_the_defaults(pivot_server: Server, where: str) -> None:
    named = {"sampler": "power"}
    body = {"sampling_params": {"max_new_tokens": 12, **(named if where == "sampling_params" else {})}}
    params = power_of(raw_generate(pivot_server, **(named if where == "body" else {}), **body))["params"]
    assert (params["alpha"], params["block_size"], params["steps"]) == (4.0, 192, 10)
    assert (params["cut"], params["schedule"], params["early_rejection"]) == ("uniform", "exact", True)


def test_a_parameter_of_the_client_beats_the_preset(pivot_server: Server) -> None:
    params = {"max_new_tokens": 12, "custom_params": {"preset": "entropy", "alpha": 3.0}}
    echoed = power_of(raw_generate(pivot_server, sampling_params=params))["params"]
    assert (echoed["alpha"], echoed["cut"], echoed["steps"]) == (3.0, "entropy", 1)


def test_sampler_none_is_plain(pivot_server: Server) -> None:
    answer = raw_generate(
        pivot_server, sampling_params={"max_new_tokens": 8, "custom_params": {"sampler": "none"}}
    )
    assert "power" not in answer["meta_info"]
    assert "power" not in (chat(pivot_server, extra_body={"sampler": "none"}).model_dump()["metadata"] or {})


def test_the_doors_agree(pivot_server: Server) -> None:
    """The same seed gives the same chain through /generate, completions and chat."""
    extra = {"custom_params": {**QUICK, "seed": 6}}
    texts = {
        generate(pivot_server, seed=6)["text"],
        complete(pivot_server, extra_body=extra).choices[0].text,
        chat(pivot_server, extra_body=extra).choices[0].message.content,
    }
    assert len(texts) == 1, texts


# --- the openai client ---


@pytest.mark.parametrize("door", [complete, chat])
@pytest.mark.parametrize("extra", [{"custom_params": QUICK}, {"sampler": "power"}, {"preset": "short"}])
def test_openai_answers_carry_one_report_per_choice(
    pivot_server: Server, door: Any, extra: dict[str, Any]
) -> None:
    response = door(pivot_server, n=2, seed=8, extra_body=extra)
    assert [choice.index for choice in response.choices] == [0, 1]
    assert len(reports(response)) == 2
    for report in reports(response):
        assert set(report) == POWER_FIELDS
        assert (report["sampler"], report["seed"]) == ("power", 8)
    assert response.model_dump()["metadata"]["weight_version"] == reports(response)[0]["weight_version"]


def test_openai_usage_counts_the_answers_not_the_work(pivot_server: Server) -> None:
    response = complete(pivot_server, n=2, logprobs=0, extra_body={"custom_params": {**QUICK, "seed": 9}})
    assert response.usage.prompt_tokens == len(PROMPT)
    lengths = [len(choice.logprobs.tokens) for choice in response.choices]
    assert response.usage.completion_tokens == sum(lengths)
    assert sum(report["decoded_tokens"] for report in reports(response)) > sum(lengths)


def test_chat_shows_meta_info_where_asked(pivot_server: Server) -> None:
    response = chat(pivot_server, extra_body={"custom_params": QUICK, "return_meta_info": True})
    meta = response.choices[0].model_dump()["meta_info"]
    assert set(meta["power"]) == POWER_FIELDS
    assert meta["power"] == reports(response)[0]
    assert not [key for key in meta if key.startswith("sglang_power")]


def test_completions_take_a_list_of_prompts(pivot_server: Server) -> None:
    extra = {"custom_params": {**QUICK, "seed": 10}}
    response = complete(pivot_server, [PROMPT, PROMPT_Q], n=2, extra_body=extra)
    assert [choice.index for choice in response.choices] == [0, 1, 2, 3]
    assert len(reports(response)) == 4
    starts = [choice.text[0] in "gw" for choice in response.choices]
    assert starts == [True, True, False, False], "answers of the first prompt come first"


def test_plain_openai_answers_have_no_report(pivot_server: Server) -> None:
    for response in (complete(pivot_server), chat(pivot_server)):
        assert "power" not in (response.model_dump()["metadata"] or {})


# --- lists and several answers ---


def test_a_list_may_mix_power_and_plain_prompts(pivot_server: Server) -> None:
    prompts = [PROMPT, "R1+1+1:", PROMPT_Q + "b"]
    params = [
        {"max_new_tokens": 24, "custom_params": {**QUICK, "alpha": 2.0}},
        {"max_new_tokens": 12},
        {"max_new_tokens": 36, "sampler": "power"},
    ]
    answers = raw_generate(pivot_server, prompts, sampling_params=params)
    assert [answer["meta_info"]["prompt_tokens"] for answer in answers] == [len(p) for p in prompts]
    assert [("power" in answer["meta_info"]) for answer in answers] == [True, False, True]
    assert power_of(answers[0])["params"]["alpha"] == 2.0
    assert power_of(answers[2])["params"]["max_new_tokens"] == 36


def test_one_sampler_serves_a_whole_list(pivot_server: Server) -> None:
    answers = raw_generate(
        pivot_server, [PROMPT, PROMPT], sampler="power", sampling_params={"max_new_tokens": 12}
    )
    assert len({power_of(answer)["seed"] for answer in answers}) == 2, "unnamed seeds are drawn per prompt"


def test_n_answers_come_in_order_from_distinct_chains(pivot_server: Server) -> None:
    """Seed 12, alpha 1 and four answers: a random number per chain, so the answers differ."""
    hot = functools.partial(generate, pivot_server, seed=12, alpha=1.0, steps=1)
    four = hot(sampling={"n": 4})
    assert isinstance(four, list)
    assert len({answer["text"] for answer in four}) > 1
    assert {power_of(answer)["seed"] for answer in four} == {12}
    assert hot()["text"] == four[0]["text"], "the first chain does not depend on n"
    assert [a["text"] for a in hot(sampling={"n": 2})] == [a["text"] for a in four[:2]]
    children = [power_of(answer)["children"] for answer in four]
    proposals = [power_of(answer)["proposals"] for answer in four]
    assert sum(children) >= 1 + sum(proposals), "the prompt is cached once for all chains"


def test_input_ids_are_as_good_as_text(pivot_server: Server) -> None:
    body = {
        "input_ids": ids_of(PROMPT),
        "sampling_params": {"max_new_tokens": 48, "custom_params": {**QUICK, "seed": 13}},
    }
    answer = post(pivot_server, "/generate", body).json()
    assert answer["text"] == generate(pivot_server, seed=13)["text"]


# --- seeds ---


def test_a_seed_reproduces_the_answer_and_the_work(pivot_server: Server) -> None:
    first, second = (generate(pivot_server, seed=14, steps=6) for _ in range(2))
    same = POWER_FIELDS - {"prefilled_tokens"}
    assert first["output_ids"] == second["output_ids"]
    assert {k: power_of(first)[k] for k in same - {"log_p", "log_target"}} == {
        k: power_of(second)[k] for k in same - {"log_p", "log_target"}
    }
    assert power_of(first)["log_p"] == pytest.approx(power_of(second)["log_p"], abs=1e-3)


def test_an_unnamed_seed_is_drawn_and_echoed(pivot_server: Server) -> None:
    first, second = (generate(pivot_server) for _ in range(2))
    assert power_of(first)["seed"] != power_of(second)["seed"]
    assert generate(pivot_server, seed=power_of(first)["seed"])["text"] == first["text"]


def test_the_seed_of_custom_params_beats_the_body(pivot_server: Server) -> None:
    response = complete(pivot_server, seed=1, extra_body={"custom_params": {**QUICK, "seed": 2}})
    assert reports(response)[0]["seed"] == 2


# --- log probabilities ---


def test_logprobs_are_those_of_the_final_tokens_at_temperature_one(pivot_server: Server) -> None:
    params = {"max_new_tokens": 48, "custom_params": {**QUICK, "seed": 15}}
    answer = raw_generate(pivot_server, sampling_params=params, return_logprob=True, top_logprobs_num=3)
    meta, ids = answer["meta_info"], answer["output_ids"]
    values = [value for value, _, _ in meta["output_token_logprobs"]]
    assert [token for _, token, _ in meta["output_token_logprobs"]] == ids
    assert meta["output_token_logprobs_length"] == len(ids)
    assert sum(values) == pytest.approx(power_of(answer)["log_p"], abs=1e-3)
    assert [len(row or []) for row in meta["output_top_logprobs"]] == [3] * len(ids)
    for value, token, row in zip(values, ids, meta["output_top_logprobs"], strict=True):
        best = max(number for number, _, _ in row)
        listed = {other: number for number, other, _ in row}
        assert listed.get(token, value) == pytest.approx(value, abs=1e-3)
        assert value <= best + 1e-3
    rescored = raw_generate(
        pivot_server,
        None,
        input_ids=[*ids_of(PROMPT), *ids],
        sampling_params={"max_new_tokens": 0},
        return_logprob=True,
        logprob_start_len=len(PROMPT) - 1,
    )
    plain = [value for value, _, _ in rescored["meta_info"]["input_token_logprobs"][-len(ids) :]]
    assert values == pytest.approx(plain, abs=2e-3)


def test_token_ids_logprob_and_prompt_logprobs(pivot_server: Server) -> None:
    params = {"max_new_tokens": 8, "custom_params": QUICK}
    answer = raw_generate(
        pivot_server,
        sampling_params=params,
        return_logprob=True,
        logprob_start_len=0,
        token_ids_logprob=[EOS, 105],
        return_text_in_logprobs=True,
    )
    meta = answer["meta_info"]
    assert [token for _, token, _ in meta["input_token_logprobs"]] == ids_of(PROMPT)
    assert [len(row or []) for row in meta["output_token_ids_logprobs"]] == [2] * len(answer["output_ids"])
    assert [text for _, _, text in meta["output_token_logprobs"]][:1] == [answer["text"][0]]


def test_openai_logprobs(pivot_server: Server) -> None:
    extra = {"custom_params": {**QUICK, "seed": 16}}
    talked = chat(pivot_server, logprobs=True, top_logprobs=2, extra_body=extra)
    content = talked.choices[0].logprobs.content
    log_p = reports(talked)[0]["log_p"]
    assert sum(token.logprob for token in content) == pytest.approx(log_p, abs=1e-3)
    assert [len(token.top_logprobs) for token in content] == [2] * len(content)
    completed = complete(pivot_server, logprobs=2, extra_body=extra).choices[0].logprobs
    assert sum(completed.token_logprobs) == pytest.approx(log_p, abs=1e-3)
    assert [len(row or ()) for row in completed.top_logprobs] == [2] * len(completed.tokens)
    assert "".join(completed.tokens[:-1]) == talked.choices[0].message.content


# --- the request in SGLang's own books ---


@pytest.mark.parametrize("stream", [False, True])
def test_a_power_request_is_one_request_in_the_metrics(pivot_server: Server, stream: bool) -> None:
    names = ("num_requests_total", "prompt_tokens_total", "generation_tokens_total")
    before = [metric(pivot_server, "sglang:" + name) for name in names]
    if stream:
        chunks = client(pivot_server).completions.create(
            model="pivot",
            prompt=PROMPT,
            max_tokens=48,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"custom_params": {**QUICK, "seed": 17}},
        )
        tokens = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage is not None][-1]
    else:
        tokens = generate(pivot_server, seed=17)["meta_info"]["completion_tokens"]
    after = [metric(pivot_server, "sglang:" + name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, len(PROMPT), tokens]


# --- the Engine ---


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Answers of an Engine in a process of its own."""
    out = tmp_path_factory.mktemp("engine") / "answers.json"
    command = [sys.executable, "-m", "integration_tests.helpers.clients", str(PIVOT_MODEL), str(out)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=ENGINE_TIMEOUT_S,
        check=False,
    )
    assert out.exists(), done.stdout[-2000:] + done.stderr[-4000:]
    answers: dict[str, Any] = json.loads(out.read_text())
    return answers


def test_engine_custom_params_and_sampler_key(engine: dict[str, Any], pivot_server: Server) -> None:
    power = power_of(engine["custom_params"])
    assert set(power) == POWER_FIELDS
    assert (power["sampler"], power["seed"], power["params"]["steps"]) == ("power", 11, 2)
    assert power_of(engine["sampler_key"])["params"]["steps"] == 10
    assert "power" not in engine["plain"]["meta_info"]
    assert generate(pivot_server, seed=11)["text"] == engine["custom_params"]["text"]


def test_engine_lists_and_n(engine: dict[str, Any]) -> None:
    assert [("power" in answer["meta_info"]) for answer in engine["list"]] == [True, False]
    assert engine["list"][0]["text"] == engine["custom_params"]["text"] == engine["n"][0]["text"]
    assert len(engine["n"]) == 2


def test_engine_branches(engine: dict[str, Any], pivot_server: Server) -> None:
    power = power_of(engine["branch"])
    assert (power["sampler"], power["law"]) == ("branch", "selection")
    assert power["forks"] > 0
    params = {"max_new_tokens": 48, "custom_params": {"sampler": "branch"}}
    assert engine["branch"]["output_ids"] == raw_generate(pivot_server, sampling_params=params)["output_ids"]


def test_engine_statistics(engine: dict[str, Any]) -> None:
    answer = engine["statistics"]
    lengths = {name: len(values) for name, values in power_of(answer)["statistics"].items()}
    assert lengths == dict.fromkeys(REPORTED_STATISTICS, len(answer["output_ids"]))


def test_engine_streams(engine: dict[str, Any]) -> None:
    last = engine["stream"][-1]
    assert last["text"] == engine["custom_params"]["text"]
    assert set(power_of(last)) == POWER_FIELDS
    assert all(last["text"].startswith(chunk["text"]) for chunk in engine["stream"])


def test_engine_raises_typed_errors_and_goes_on(engine: dict[str, Any]) -> None:
    for error, shown in zip(engine["errors"], ("0.5", "nan", "inf"), strict=True):
        assert error["type"] == "RequestError"
        assert error["message"].startswith(f"alpha={shown}: ")
    assert engine["after_error"]["text"] == engine["custom_params"]["text"]


# --- many at once ---


def test_concurrent_requests_are_all_answered(pivot_server: Server) -> None:
    """Twice the server's limit on concurrent power requests: the others wait for their turn."""
    calls = [functools.partial(generate, pivot_server, seed=seed) for seed in range(16)]
    answers = together(calls)
    assert [power_of(answer)["seed"] for answer in answers] == list(range(16))
    assert {answer["meta_info"]["finish_reason"]["type"] for answer in answers} <= {"stop", "length"}


def test_the_openai_list_of_models_still_answers(pivot_server: Server) -> None:
    assert [model.id for model in client(pivot_server).models.list()] == ["pivot"]
    with pytest.raises(openai.BadRequestError):
        chat(pivot_server, temperature=0.3, extra_body={"sampler": "power"})
    assert HTTP.get(pivot_server.url + "/health").status_code == httpx.codes.OK


# --- parameters of the chain ---


WORKED = "w7+3=0;w0*2=0;w0-8=2;A2."
"""The completion that works every step of PROMPT."""

HOPELESS: dict[str, Any] = {"proposal_temperature": 50.0, "alpha": 8.0}
"""Proposals of near-uniform bytes: none is ever accepted against a sensible state."""


@pytest.mark.parametrize("draft", [{"initial_text": WORKED}, {"initial_ids": ids_of(WORKED)}])
def test_an_unfinished_draft_is_extended(pivot_server: Server, draft: dict[str, Any]) -> None:
    answer = generate(pivot_server, seed=20, steps=3, return_trace=True, **HOPELESS, **draft)
    power = power_of(answer)
    assert power["params"]["draft"] is True
    assert power["steps"] == 3, "a draft starts in the last stage"
    assert power["trace"][0]["current_length"] >= len(WORKED)
    assert answer["text"].startswith(WORKED[:5])


def test_a_finished_draft_stands_until_something_better_comes(pivot_server: Server) -> None:
    answer = generate(pivot_server, seed=21, steps=4, initial_ids=[*ids_of(WORKED), EOS], **HOPELESS)
    assert (answer["text"], power_of(answer)["accepted"]) == (WORKED, 0)
    rescored = generate(pivot_server, seed=22, max_steps=1, initial_ids=[*ids_of(WORKED), EOS], **HOPELESS)
    assert power_of(rescored)["log_p"] == pytest.approx(power_of(answer)["log_p"], abs=1e-3)


def test_a_draft_as_long_as_the_horizon(pivot_server: Server) -> None:
    draft = ids_of(WORKED)[:10]
    answer = generate(pivot_server, max_new_tokens=10, seed=23, steps=2, initial_ids=draft, **HOPELESS)
    assert answer["output_ids"] == draft
    assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": 10}


STOPS = ["=0;", ";A", "-8=", "0;w", "g4;g"]
"""Several tokens each, so that cuts fall inside them."""


def test_stop_strings_hold_across_cuts(pivot_server: Server) -> None:
    """24 seeds, blocks of three tokens, eight steps each: cuts fall inside every stop string.

    Every second request keeps its stop in the text (no_stop_trim).
    """
    calls = [
        functools.partial(
            generate,
            pivot_server,
            seed=seed,
            alpha=1.5,
            block_size=3,
            steps=8,
            sampling={"stop": STOPS, "no_stop_trim": seed % 2 == 1},
        )
        for seed in range(24)
    ]
    matched = set()
    for seed, answer in enumerate(together(calls)):
        text, reason = answer["text"], answer["meta_info"]["finish_reason"]
        if reason["type"] == "length" or reason["matched"] == EOS:
            assert not any(stop in text for stop in STOPS), answer
            continue
        stop = reason["matched"]
        matched.add(stop)
        before = text
        if seed % 2:
            assert text.endswith(stop)
            before = text.removesuffix(stop)
        assert not any(other in before for other in STOPS), answer
        assert answer["output_ids"] == ids_of(before + stop), "output ids keep the stop, as in SGLang"
    assert matched <= set(STOPS)
    assert len(matched) >= 3, "the seeds reach most of the stop strings"


def test_openai_stop(pivot_server: Server) -> None:
    extra = {"custom_params": {**QUICK, "seed": 24, "block_size": 4}}
    choice = complete(pivot_server, stop=[";A"], extra_body=extra).choices[0]
    assert (choice.finish_reason, choice.model_dump()["matched_stop"]) == ("stop", ";A")
    assert ";A" not in choice.text


def test_stop_token_ids_and_ignore_eos(pivot_server: Server) -> None:
    semicolon = ids_of(";")[0]
    stopped = generate(pivot_server, seed=25, sampling={"stop_token_ids": [semicolon]})
    assert stopped["meta_info"]["finish_reason"] == {"type": "stop", "matched": semicolon}
    assert stopped["output_ids"].index(semicolon) == len(stopped["output_ids"]) - 1
    endless = generate(pivot_server, seed=25, max_new_tokens=64, sampling={"ignore_eos": True})
    assert len(endless["output_ids"]) == 64


def test_logit_bias_is_part_of_the_base_law(pivot_server: Server) -> None:
    """Without the letter `g` no step can be guessed: every step is worked."""
    never = {"logit_bias": {str(ids_of("g")[0]): -100.0}}
    for seed in range(3):
        answer = generate(pivot_server, seed=seed, alpha=1.0, sampling=never)
        assert "g" not in answer["text"]
        assert answer["text"].startswith("w7+3=0;w0*2=0;")


def test_min_new_tokens_counts_the_whole_answer(pivot_server: Server) -> None:
    """Answers to Q end after three tokens as a rule; children that restart the count would need more."""
    calls = [
        functools.partial(
            generate, pivot_server, PROMPT_Q, seed=seed, block_size=8, sampling={"min_new_tokens": 12}
        )
        for seed in range(8)
    ]
    answers = together(calls)
    assert min(len(answer["output_ids"]) for answer in answers) >= 12
    assert all(EOS not in answer["output_ids"][:11] for answer in answers)
    assert any(len(answer["output_ids"]) < 40 for answer in answers)


def test_max_steps(pivot_server: Server) -> None:
    power = power_of(generate(pivot_server, seed=26, steps=20, block_size=192, max_steps=5))
    assert (power["steps"], power["stopped_by"], power["law"]) == (5, "max_steps", "power")


def test_a_budget_that_ends_an_early_stage_still_answers_in_full(pivot_server: Server) -> None:
    sampling = {"ignore_eos": True}
    answer = generate(pivot_server, seed=27, max_new_tokens=32, block_size=8, max_steps=1, sampling=sampling)
    power = power_of(answer)
    assert (len(answer["output_ids"]), power["steps"], power["stopped_by"]) == (32, 1, "max_steps")
    assert power["law"] == "approximate", "no step of the last stage ran"


@pytest.mark.parametrize("chains", [1, 2])
def test_max_total_tokens_is_never_exceeded(pivot_server: Server, chains: int) -> None:
    for seed in range(4):
        answers = generate(pivot_server, seed=seed, steps=100, max_total_tokens=160, sampling={"n": chains})
        each = answers if isinstance(answers, list) else [answers]
        powers = [power_of(answer) for answer in each]
        assert {(p["stopped_by"], p["law"]) for p in powers} == {("max_total_tokens", "approximate")}
        assert sum(p["decoded_tokens"] for p in powers) <= 160
        assert {a["meta_info"]["finish_reason"]["type"] for a in each} <= {"stop", "length"}


def test_a_deadline_that_has_passed_still_answers(pivot_server: Server) -> None:
    answer = generate(pivot_server, seed=28, steps=100, deadline_ms=1)
    power = power_of(answer)
    assert (power["stopped_by"], power["law"]) == ("deadline_ms", "approximate")
    assert answer["meta_info"]["finish_reason"]["type"] in ("stop", "length")
    assert power["steps"] < 100


@pytest.mark.parametrize(
    "changed",
    [
        {"schedule": "paper"},
        {"lookback_blocks": 1, "block_size": 8},
        {"top_p": 0.9},
        {"top_k": 3},
        {"min_p": 0.05},
    ],
)
def test_what_leaves_p_to_the_alpha_says_approximate(pivot_server: Server, changed: dict[str, Any]) -> None:
    power = power_of(generate(pivot_server, seed=29, **changed))
    assert power["law"] == "approximate"
    assert {key: power["params"][key] for key in changed} == changed


@pytest.mark.parametrize("tau", [1.0, 0.5, 0.2])
def test_early_rejection_is_on_only_where_it_is_exact(pivot_server: Server, tau: float) -> None:
    """kappa = 1/tau must lie between 1 and alpha = 4."""
    power = power_of(generate(pivot_server, seed=30, proposal_temperature=tau, steps=6))
    assert power["params"]["early_rejection"] is (tau >= 0.25)
    assert power["early_rejected"] == 0 or tau >= 0.25


def test_entropy_cuts_and_the_trace(pivot_server: Server) -> None:
    power = power_of(generate(pivot_server, seed=31, cut="entropy", steps=5, return_trace=True))
    assert power["params"]["cut"] == "entropy"
    assert len(power["trace"]) == power["steps"]
    assert sum(step["accepted"] for step in power["trace"]) == power["accepted"]


# --- what counts is what the client named ---


def test_truncation_named_in_the_openai_body(pivot_server: Server) -> None:
    extra = {"custom_params": {**QUICK, "seed": 32}, "top_k": 1}
    response = chat(pivot_server, top_p=0.9, extra_body=extra)
    params = reports(response)[0]["params"]
    assert (params["top_k"], params["top_p"]) == (1, 0.9)
    greedy = chat(pivot_server, temperature=0).choices[0].message.content
    assert response.choices[0].message.content == greedy, "top_k = 1 leaves one sequence"


def test_truncation_in_sampling_params(pivot_server: Server) -> None:
    assert power_of(generate(pivot_server, sampling={"top_k": 2, "min_p": 0.1}))["params"]["top_k"] == 2


@pytest.mark.parametrize("temperature", [0.7, 0, 1.5])
def test_a_temperature_is_refused(pivot_server: Server, temperature: float) -> None:
    with pytest.raises(openai.BadRequestError, match="on_temperature"):
        complete(pivot_server, temperature=temperature, extra_body={"sampler": "power"})
    body = {"text": PROMPT, "sampler": "power", "sampling_params": {"temperature": temperature}}
    assert post(pivot_server, "/generate", body).status_code == httpx.codes.BAD_REQUEST


def test_temperature_one_is_accepted(pivot_server: Server) -> None:
    assert reports(complete(pivot_server, temperature=1, extra_body={"preset": "short"}))


def test_model_defaults_are_neutralised_and_listed(default_server: Server) -> None:
    """This model's generation config truncates, penalises and cools; the chain must not."""
    response = client(default_server).chat.completions.create(
        model="defaulted", messages=MESSAGES, max_tokens=24, extra_body={"custom_params": QUICK}
    )
    params = reports(response)[0]["params"]
    assert params["neutralised"] == ["repetition_penalty", "temperature", "top_k", "top_p"]
    assert (params["top_p"], params["top_k"], reports(response)[0]["law"]) == (None, None, "power")
