"""The support matrix in one server: page size 16, two tokenizer workers, two data-parallel ranks, chunked
prefill of 16 tokens, forced retraction, and `--sampling-backend power`.
"""

from __future__ import annotations

import functools
import random
from typing import Any

import httpx
import pytest
from sglang_power.cli import main

from integration_tests.helpers.clients import (
    EOS,
    PROMPT,
    QUICK,
    client,
    generate,
    metric,
    power_of,
    raw_generate,
    reports,
    sse_lines,
    together,
)
from integration_tests.helpers.workers import answers_of_both_workers
from integration_tests.server import Server
from integration_tests.tests.test_branch_server import shape
from integration_tests.tests.test_forking import check_what_forks_recompute

pytestmark = pytest.mark.server

PAGE = 16
RANKS = {0, 1}


def long_prompt(seed: int, operations: int = 50) -> str:
    """A problem of about 100 characters, another one for each seed: many pages and many prefill chunks."""
    draw = random.Random(seed)
    return "R7" + "".join(draw.choice("+-*") + str(draw.randrange(10)) for _ in range(operations)) + ":"


def retracted(answer: dict[str, Any]) -> int:
    """How often children of this request were retracted."""
    return int(answer["meta_info"]["num_retractions"])


def test_forks_recompute_what_the_page_size_predicts(matrix_server: Server) -> None:
    check_what_forks_recompute(matrix_server, page=PAGE, count=6)


def test_sixteen_long_prompts_at_once(matrix_server: Server) -> None:
    """Chunked prefill and retraction beside each other: every answer is whole, statistics too."""
    calls = [
        functools.partial(generate, matrix_server, long_prompt(seed), max_new_tokens=48, seed=seed)
        for seed in range(16)
    ]
    answers = together(calls)
    for seed, answer in enumerate(answers):
        power = power_of(answer)
        assert (power["sampler"], power["seed"], power["stopped_by"]) == ("power", seed, "completed")
        assert answer["meta_info"]["prompt_tokens"] == len(long_prompt(seed))
        assert answer["meta_info"]["completion_tokens"] == len(answer["output_ids"]) <= 48
        assert power["log_p"] is not None
        assert power["log_p"] < 0
    assert {answer["meta_info"]["dp_rank"] for answer in answers} == RANKS
    assert sum(retracted(answer) for answer in answers) > 0, "this server retracts"


def test_log_p_survives_retraction_and_chunks(matrix_server: Server) -> None:
    """The statistics that the chain decides by are those that a prefill pass over the answer gives."""
    calls = [
        functools.partial(generate, matrix_server, long_prompt(seed), max_new_tokens=48, seed=seed)
        for seed in range(100, 106)
    ]
    for seed, answer in zip(range(100, 106), together(calls), strict=True):
        prompt = [byte + 2 for byte in long_prompt(seed).encode()]
        rescored = raw_generate(
            matrix_server,
            None,
            input_ids=[*prompt, *answer["output_ids"]],
            sampling_params={"max_new_tokens": 0},
            return_logprob=True,
            logprob_start_len=len(prompt) - 1,
        )
        values = rescored["meta_info"]["input_token_logprobs"][-len(answer["output_ids"]) :]
        assert sum(value for value, _, _ in values) == pytest.approx(power_of(answer)["log_p"], abs=5e-3)


def test_chains_spread_over_ranks(matrix_server: Server) -> None:
    answers = generate(matrix_server, long_prompt(200), max_new_tokens=32, seed=200, sampling={"n": 4})
    assert len(answers) == 4
    assert {answer["meta_info"]["dp_rank"] for answer in answers} == RANKS


@pytest.mark.parametrize("chains", [1, 4])
def test_every_child_of_a_chain_is_served_by_the_rank_that_holds_its_trunk(
    matrix_server: Server, chains: int
) -> None:
    """A child recomputes at most one page; a chain on a fresh rank computes the prompt there once.

    Unpinned children would alternate between the ranks and recompute the prompt of over a hundred tokens
    at about every second call.
    """
    prompt = long_prompt(300 + chains)
    answers = generate(matrix_server, prompt, max_new_tokens=32, seed=1, steps=6, sampling={"n": chains})
    each = answers if isinstance(answers, list) else [answers]
    for answer in each:
        power = power_of(answer)
        assert power["children"] >= 6
        assert power["prefilled_tokens"] <= PAGE * power["children"] + 2 * len(prompt)


GUIDED = {"sampler": "kl_guided", "prompt_without": long_prompt(500, 20), "sigma": 0.5}
STATEFUL = [
    {
        "sampler": "entropix",
        "entropy_threshold": 0.5,
        "varentropy_threshold": 0.3,
        "insert_ids": [105, 55, 61],
    },
    {"sampler": "adapt", "hot": 3.0, "cold": 0.6},
]
"""entropix remembers whether it has inserted, adapt looks at the token before."""


def policy_calls(server: Server, policy: dict[str, Any], seeds: range, **sampling: Any) -> list[Any]:
    """One request for each seed, each with a prompt of its own."""
    params = {"max_new_tokens": 40, "ignore_eos": True, **sampling}
    return [
        functools.partial(
            raw_generate,
            server,
            long_prompt(500 + seed),
            sampling_params={**params, "custom_params": {**policy, "seed": seed}},
        )
        for seed in seeds
    ]


def test_pairs_recover_from_retraction(matrix_server: Server, pivot_server: Server) -> None:
    """Retraction and the ranks' queues tear pairs apart: tokens are wasted, no answer changes."""
    answers = together(policy_calls(matrix_server, GUIDED, range(10)))
    expected = together(policy_calls(pivot_server, GUIDED, range(10)))
    assert [answer["output_ids"] for answer in answers] == [answer["output_ids"] for answer in expected]
    for answer in answers:
        power = power_of(answer)
        assert len(answer["output_ids"]) == 40
        assert power["decoded_tokens"] == 2 * 40 + power["wasted_tokens"]
        assert power["children"] % 2 == 0
    assert {answer["meta_info"]["dp_rank"] for answer in answers} == RANKS
    assert sum(retracted(answer) for answer in answers) > 0, "this server retracts"
    assert max(power_of(answer)["children"] for answer in answers) > 4, "some pair was torn apart"


@pytest.mark.parametrize("policy", STATEFUL, ids=lambda policy: policy["sampler"])
def test_policies_with_a_memory_survive_retraction(
    matrix_server: Server, pivot_server: Server, policy: dict[str, Any]
) -> None:
    """The newline's logit is raised, so that answers have lines."""
    bias = {"logit_bias": {"12": 18.0}} if policy["sampler"] == "adapt" else {}
    answers = together(policy_calls(matrix_server, policy, range(10), **bias))
    expected = together(policy_calls(pivot_server, policy, range(10), **bias))
    assert [answer["output_ids"] for answer in answers] == [answer["output_ids"] for answer in expected]
    assert {answer["meta_info"]["dp_rank"] for answer in answers} == RANKS
    assert sum(retracted(answer) for answer in answers) > 0, "this server retracts"
    texts = [answer["text"] for answer in answers]
    if policy["sampler"] == "adapt":
        assert sum("\n" in text for text in texts) > 4
    else:
        assert sum("g5;" in text for text in texts) > 4


def test_statistics_of_plain_rows_survive_retraction_and_chunks(matrix_server: Server) -> None:
    """They are those that a prefill pass over the answer gives, token by token."""
    params = {"max_new_tokens": 60, "ignore_eos": True, "temperature": 0.8, "return_statistics": True}
    answers: list[dict[str, Any]] = []
    while sum(retracted(answer) > 0 for answer in answers) < 3:
        assert len(answers) < 200, "this server retracts"
        seeds = range(700 + len(answers), 708 + len(answers))
        answers += together(
            [
                functools.partial(raw_generate, matrix_server, long_prompt(seed), sampling_params=params)
                for seed in seeds
            ]
        )
    for seed, answer in enumerate(answers, start=700):
        prompt = [byte + 2 for byte in long_prompt(seed).encode()]
        rescored = raw_generate(
            matrix_server,
            None,
            input_ids=[*prompt, *answer["output_ids"]],
            sampling_params={"max_new_tokens": 0},
            return_logprob=True,
            logprob_start_len=len(prompt) - 1,
        )
        values = [value for value, _, _ in rescored["meta_info"]["input_token_logprobs"][-60:]]
        assert power_of(answer)["statistics"]["log_p"] == pytest.approx(values, abs=5e-3)


LEAST = 60
STOP_AT_ONCE: dict[str, Any] = {
    "max_new_tokens": 120,
    "min_new_tokens": LEAST,
    "ignore_eos": False,
    "logit_bias": {str(EOS): 40.0},
}
"""Every answer has 60 tokens and then the stop, which nothing but min_new_tokens keeps back."""


@pytest.mark.parametrize(
    "sampler",
    [
        pytest.param({"sampler": "best_of", "samples": 2, "answer": "text"}, marks=pytest.mark.long),
        pytest.param({"sampler": "cot", "k": 2, "answer": "text"}, marks=pytest.mark.long),
        {"sampler": "power", "block_size": 120, "steps": 1, "early_rejection": False},
        GUIDED,
    ],
    ids=lambda sampler: sampler["sampler"],
)
def test_min_new_tokens_is_counted_once_whatever_was_retracted(
    matrix_server: Server, sampler: dict[str, Any]
) -> None:
    """SGLang counts it from each prefill: a retracted child would go on for 60 tokens more.

    Bursts until at least three requests were retracted, which the server does every 30 steps.
    """
    answers: list[dict[str, Any]] = []
    while sum(retracted(answer) > 0 for answer in answers) < 3:
        seeds = range(len(answers), len(answers) + 8)
        assert len(answers) < 200, "this server retracts"
        answers += together(policy_calls(matrix_server, sampler, seeds, **STOP_AT_ONCE))
    for answer in answers:
        assert len(answer["output_ids"]) == LEAST + 1
        assert answer["output_ids"].index(EOS) == LEAST
        assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": EOS}


PENALTIES = {"frequency_penalty": 0.8, "presence_penalty": 0.5, "repetition_penalty": 1.3}


def test_penalties_count_the_same_tokens_whatever_was_retracted(
    matrix_server: Server, pivot_server: Server
) -> None:
    """A retracted row is counted anew from what it had: chunks, pages and ranks change no answer."""
    chain = {"sampler": "power", "block_size": 20, "steps": 2}
    answers = together(policy_calls(matrix_server, chain, range(10), **PENALTIES))
    expected = together(policy_calls(pivot_server, chain, range(10), **PENALTIES))
    assert [answer["output_ids"] for answer in answers] == [answer["output_ids"] for answer in expected]
    assert sum(retracted(answer) for answer in answers) > 0, "this server retracts"


SEARCH = {"sampler": "branch", "policy": "beam", "beam": 3, "max_branches": 24, "return_tree": True}


def test_branches_fork_at_the_same_tokens_on_every_server(
    matrix_server: Server, pivot_server: Server
) -> None:
    """Triggers count committed tokens: chunks of prompts, retraction and the ranks change no tree."""
    answers = together(policy_calls(matrix_server, SEARCH, range(10)))
    expected = together(policy_calls(pivot_server, SEARCH, range(10)))
    assert [shape(answer) for answer in answers] == [shape(answer) for answer in expected]
    assert [answer["output_ids"] for answer in answers] == [answer["output_ids"] for answer in expected]
    assert min(power_of(answer)["forks"] for answer in answers) > 1
    for answer in answers:
        tokens = sum(len(node["ids"]) for node in power_of(answer)["tree"]["nodes"])
        assert power_of(answer)["decoded_tokens"] == tokens + power_of(answer)["wasted_tokens"]
    assert {answer["meta_info"]["dp_rank"] for answer in answers} == RANKS
    assert sum(retracted(answer) for answer in answers) > 0, "this server retracts"


def test_a_named_rank_is_kept(matrix_server: Server) -> None:
    for rank in sorted(RANKS):
        params = {"max_new_tokens": 32, "custom_params": QUICK}
        answer = raw_generate(matrix_server, long_prompt(400), sampling_params=params, routed_dp_rank=rank)
        assert answer["meta_info"]["dp_rank"] == rank


def test_both_tokenizer_workers_serve_power(matrix_server: Server) -> None:
    """A worker without the plugin would answer plainly."""
    answers = answers_of_both_workers(matrix_server)
    assert sorted(power_of(answer)["seed"] for answer in answers) == list(range(len(answers)))


@pytest.mark.parametrize("sampling", [{"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.05}, {"temperature": 0}])
def test_plain_requests_survive_the_power_backend(matrix_server: Server, sampling: dict[str, Any]) -> None:
    """SGLang's own sampler, chosen by the name "power", would end the server at the first such row."""
    calls = [
        functools.partial(
            raw_generate, matrix_server, PROMPT, sampling_params={"max_new_tokens": 16, **sampling}
        ),
        functools.partial(generate, matrix_server, seed=1),
    ]
    plain, power = together(calls)
    assert "power" not in plain["meta_info"]
    assert not [key for key in plain["meta_info"] if key.startswith("sglang_power")]
    assert power_of(power)["seed"] == 1
    assert httpx.get(matrix_server.url + "/health_generate", timeout=60).status_code == httpx.codes.OK


def test_truncated_proposals_beside_untruncated_ones(matrix_server: Server) -> None:
    calls = [functools.partial(generate, matrix_server, seed=1, top_k=k) for k in (1, 3, -1)]
    one, _, _ = together(calls)
    greedy = raw_generate(matrix_server, sampling_params={"temperature": 0, "max_new_tokens": 48})
    assert one["text"] == greedy["text"], "top_k = 1 leaves one sequence"


def test_streams_and_openai_clients(matrix_server: Server) -> None:
    extra = {"custom_params": {**QUICK, "seed": 5}}
    completions = client(matrix_server).completions
    whole = completions.create(model="matrix", prompt=PROMPT, max_tokens=48, n=2, extra_body=extra)
    stream = completions.create(
        model="matrix", prompt=PROMPT, max_tokens=48, n=2, stream=True, extra_body=extra
    )
    texts = ["", ""]
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text or ""
    assert len(reports(whole)) == 2
    assert all(texts)


def test_stop_strings_hold_across_cuts_and_pages(matrix_server: Server) -> None:
    stops = [";A", "=0;"]
    calls = [
        functools.partial(generate, matrix_server, seed=seed, block_size=5, sampling={"stop": stops})
        for seed in range(8)
    ]
    for answer in together(calls):
        assert not any(stop in answer["text"] for stop in stops)


def test_metrics_of_both_workers_add_up(matrix_server: Server) -> None:
    def ended() -> float:
        return metric(matrix_server, "sglang_power_requests_total", sampler="power", stopped_by="completed")

    before, decoded = ended(), metric(matrix_server, "sglang_power_tokens_total", kind="decoded")
    answers = answers_of_both_workers(matrix_server)
    assert ended() - before == len(answers)
    now = metric(matrix_server, "sglang_power_tokens_total", kind="decoded")
    assert now - decoded == sum(power_of(answer)["decoded_tokens"] for answer in answers)
    for name in ("sglang_power_latency_seconds_count", "sglang_power_steps_total"):
        assert metric(matrix_server, name) > 0


def test_an_abort_reaches_a_chain_whichever_worker_takes_it(matrix_server: Server) -> None:
    """The worker that gets the abort is not always the one that runs the chain, which may hold no child."""
    params = {"max_new_tokens": 96, "ignore_eos": True, "custom_params": {**QUICK, "steps": 400}}
    for i in range(10):
        body = {"text": PROMPT, "rid": f"matrix-{i}", "stream": True, "sampling_params": params}
        lines = sse_lines(matrix_server, "/generate", body)
        first = next(lines)
        assert '"progress"' in first
        httpx.post(matrix_server.url + "/abort_request", json={"rid": f"matrix-{i}"}, timeout=60)
        rest = list(lines)
        assert '"type":"abort"' in rest[-2]


def test_the_check_command_reports_every_rank(
    matrix_server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--url", matrix_server.url]) == 0
    lines = capsys.readouterr().out.splitlines()
    for rank in RANKS:
        assert any(line.startswith(f"scheduler (rank {rank}, ") for line in lines)
    assert lines[-1] == "power sampling is live"
