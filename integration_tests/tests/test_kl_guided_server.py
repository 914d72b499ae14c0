"""kl_guided in the server: every answer is decoded behind two prompts at once, by two children in lock step.

Its law is in law_tests/test_policy_law_server.py; here are the cost, stops, n and streams; aborts and clients
that leave are in test_policies_interrupted.py. On the matrix server (test_support_matrix.py) pairs are torn
apart and have to recover.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest

from integration_tests.helpers.clients import (
    MESSAGES,
    PROMPT,
    client,
    events,
    eventually,
    metric,
    power_of,
    raw_generate,
    reports,
    together,
    unfinished,
)
from integration_tests.server import Server

pytestmark = pytest.mark.server

Json = dict[str, Any]

GUIDED: Json = {"sampler": "kl_guided", "prompt_without": "R7:", "sigma": 0.5}


def ask(server: Server, seed: int, *, body: Json | None = None, **sampling: Any) -> Any:
    """A guided answer, or a list of n."""
    params = {"max_new_tokens": 32, **sampling, "custom_params": {**GUIDED, "seed": seed}}
    return raw_generate(server, PROMPT, sampling_params=params, **(body or {}))


def burst(server: Server, seeds: range, **more: Any) -> list[Any]:
    """Guided answers, one for each seed, asked for at once."""
    return together([functools.partial(ask, server, seed, **more) for seed in seeds])


def decoded_in_lock_step(answer: Json) -> bool:
    """Two tokens were decoded for each one of the answer, and what was wasted is said."""
    power, tokens = power_of(answer), answer["meta_info"]["completion_tokens"]
    return bool(power["decoded_tokens"] == 2 * tokens + power["wasted_tokens"])


# --- answers and their cost ---------------------------------------------------------------------------


def test_seeds_repeat_answers_and_both_rows_are_counted(pivot_server: Server) -> None:
    """Alone: two children cache the prompts, in turn; two decode the answer, each a token early."""
    answer = ask(pivot_server, 1)
    power, tokens = power_of(answer), len(answer["output_ids"])
    assert decoded_in_lock_step(answer)
    assert (power["children"], power["wasted_tokens"], power["depth"]) == (4, 2, 3 + tokens + 1)
    assert answer["meta_info"]["completion_tokens"] == tokens
    assert answer["meta_info"]["prompt_tokens"] == len(PROMPT)
    assert ask(pivot_server, 1)["output_ids"] == answer["output_ids"]
    assert len({one["text"] for one in burst(pivot_server, range(8))}) > 4


def test_a_burst_answers_what_each_request_answers_alone(pivot_server: Server) -> None:
    """Pairs that the scheduler separates waste tokens and repeat them; the answers stay."""
    alone = [ask(pivot_server, seed) for seed in range(6)]
    at_once = burst(pivot_server, range(6))
    assert [one["output_ids"] for one in at_once] == [one["output_ids"] for one in alone]
    assert all(decoded_in_lock_step(one) for one in at_once)


def test_the_source_matters(pivot_server: Server) -> None:
    """A small sigma makes every divergence greedy, a large one leaves the base law."""

    def text(**policy: Any) -> str:
        params = {"max_new_tokens": 32, "custom_params": {"seed": 3, **policy}}
        answer: Json = raw_generate(pivot_server, PROMPT, sampling_params=params)
        return str(answer["text"])

    base = text(sampler="temperature", value=1.0)
    greedy = raw_generate(pivot_server, PROMPT, sampling_params={"temperature": 0, "max_new_tokens": 32})
    assert text(sampler="kl_guided", prompt_without="gw", sigma=1e-3) == greedy["text"] != base
    assert text(sampler="kl_guided", prompt_without="gw", sigma=1e9) == base


def test_log_probabilities_are_those_of_the_answer(pivot_server: Server) -> None:
    """Under the base law behind the main prompt."""
    answer = ask(pivot_server, 4, body={"return_logprob": True, "top_logprobs_num": 3})
    meta = answer["meta_info"]
    assert [token for _, token, _ in meta["output_token_logprobs"]] == answer["output_ids"]
    rescored = raw_generate(
        pivot_server,
        None,
        input_ids=[*[byte + 2 for byte in PROMPT.encode()], *answer["output_ids"]],
        sampling_params={"max_new_tokens": 0},
        return_logprob=True,
        logprob_start_len=len(PROMPT) - 1,
    )["meta_info"]["input_token_logprobs"][-len(answer["output_ids"]) :]
    found = [value for value, _, _ in meta["output_token_logprobs"]]
    assert found == pytest.approx([value for value, _, _ in rescored], abs=1e-4)
    for (value, token, _), top in zip(
        meta["output_token_logprobs"], meta["output_top_logprobs"], strict=True
    ):
        assert {t: v for v, t, _ in top}.get(token, value) == pytest.approx(value, abs=1e-4)


def test_n_answers_share_two_prompts(pivot_server: Server) -> None:
    answers = ask(pivot_server, 5, n=3)
    assert [power_of(answer)["seed"] for answer in answers] == [5] * 3
    assert len({answer["text"] for answer in answers}) == 3
    assert answers[0]["output_ids"] == ask(pivot_server, 5)["output_ids"]
    assert [power_of(answer)["children"] for answer in answers] == [4, 2, 2]
    assert all(decoded_in_lock_step(answer) for answer in answers)


# --- stops and streams --------------------------------------------------------------------------------


STOPS: list[Json] = [
    {"stop": [";g", ";w"]},
    {"stop": "A"},
    {"stop": [";A"], "no_stop_trim": True},
    {"stop": [":"]},
    {"stop": [":g", "8:w", "6;A"]},
    {"stop_token_ids": [61]},
    {"stop_token_ids": [60]},
    {"min_new_tokens": 24},
    {"max_new_tokens": 1},
    {"ignore_eos": True},
    {"top_k": 2, "top_p": 0.9},
    {"temperature": 2.0},
    {"logit_bias": {"54": 3.0}},
]
"""":" and its token, 60, end the prompt: a stop is one of the answer, not of what stands before."""


@pytest.mark.parametrize("sampling", STOPS, ids=str)
def test_a_pair_without_divergence_is_an_ordinary_request(pivot_server: Server, sampling: Json) -> None:
    """Behind the same prompt nothing is colder: the policy "temperature" draws the same answer."""

    def answer_of(**policy: Any) -> Json:
        params = {"max_new_tokens": 32, **sampling, "custom_params": {"seed": 6, **policy}}
        answer: Json = raw_generate(pivot_server, PROMPT, sampling_params=params)
        return answer

    single = answer_of(sampler="temperature", value=1.0)
    for pair in (
        answer_of(sampler="kl_guided", prompt_without=PROMPT),
        answer_of(sampler="kl_guided", ids_without=[byte + 2 for byte in PROMPT.encode()]),
    ):
        assert pair["output_ids"] == single["output_ids"]
        assert pair["text"] == single["text"]
        assert pair["meta_info"]["finish_reason"] == single["meta_info"]["finish_reason"]
        assert decoded_in_lock_step(pair)
    eventually(lambda: unfinished(pivot_server) == 0, "both rows ended")


def test_prompts_of_one_token_and_of_the_whole_context(pivot_server: Server) -> None:
    params: Json = {"max_new_tokens": 8, "ignore_eos": True}
    shortest = {**GUIDED, "prompt_without": "g", "seed": 1}
    longest = {**GUIDED, "prompt_without": "R" + "1+" * 120 + "1:", "seed": 1}
    for custom, prompt in ((shortest, "R"), (longest, PROMPT), (longest, "R"), (shortest, "R" + "1+" * 121)):
        answer = raw_generate(pivot_server, prompt, sampling_params={**params, "custom_params": custom})
        assert len(answer["output_ids"]) == 8
        assert decoded_in_lock_step(answer)


def test_lengths(pivot_server: Server) -> None:
    fixed = ask(pivot_server, 7, max_new_tokens=40, ignore_eos=True)
    assert fixed["meta_info"]["finish_reason"] == {"type": "length", "length": 40}
    assert len(fixed["output_ids"]) == 40
    longer = ask(pivot_server, 7, max_new_tokens=40, min_new_tokens=30)
    assert len(longer["output_ids"]) >= 30
    assert 0 not in longer["output_ids"][:30]


@pytest.mark.parametrize("n", [1, 2])
def test_generate_streams_whole_answers(pivot_server: Server, n: int) -> None:
    expected = ask(pivot_server, 8, n=n)
    answers = expected if isinstance(expected, list) else [expected]
    params = {"max_new_tokens": 32, "n": n, "custom_params": {**GUIDED, "seed": 8}}
    chunks = events(pivot_server, "/generate", {"text": PROMPT, "stream": True, "sampling_params": params})
    last = {chunk["index"]: chunk for chunk in chunks}
    assert [last[i]["output_ids"] for i in range(n)] == [answer["output_ids"] for answer in answers]
    assert [power_of(last[i])["children"] for i in range(n)] == [4, 2][:n]
    assert all(last[i]["meta_info"]["finish_reason"]["type"] == "stop" for i in range(n))


def test_openai_clients_get_whole_answers(pivot_server: Server) -> None:
    expected = ask(pivot_server, 9, n=2)
    asked: Json = {
        "model": "pivot",
        "max_tokens": 32,
        "n": 2,
        "extra_body": {"custom_params": {**GUIDED, "seed": 9}},
    }
    whole = client(pivot_server).chat.completions.create(messages=MESSAGES, **asked)
    assert [choice.message.content for choice in whole.choices] == [answer["text"] for answer in expected]
    assert [report["sampler"] for report in reports(whole)] == ["kl_guided"] * 2
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == len(PROMPT)
    assert whole.usage.completion_tokens == sum(one["meta_info"]["completion_tokens"] for one in expected)
    texts = ["", ""]
    chunks = list(client(pivot_server).completions.create(prompt=PROMPT, stream=True, **asked))
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text or ""
    assert texts == [answer["text"] for answer in expected]
    assert len(reports([chunk for chunk in chunks if chunk.choices][-1])) == 2


def test_pairs_are_one_request_in_the_metrics(pivot_server: Server) -> None:
    def counts() -> list[float]:
        answers = metric(
            pivot_server, "sglang_power_policy_answers_total", sampler="kl_guided", finish="stop"
        )
        return [answers, metric(pivot_server, "sglang:num_requests_total")]

    before = counts()
    answers = burst(pivot_server, range(3))
    assert {answer["meta_info"]["finish_reason"]["type"] for answer in answers} == {"stop"}
    assert [now - then for now, then in zip(counts(), before, strict=True)] == [3, 3]
