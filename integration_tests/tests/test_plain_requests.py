"""Requests that ask for nothing get what stock SGLang gives them, also while power requests run beside them.

The reference is a second server without the plugin. Family-wise error of this file: two G-tests at
p > 0.001 each, hence 0.002; SGLang's own draws cannot be seeded.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from scipy import stats

from integration_tests.helpers.clients import (
    PROMPT,
    QUICK,
    client,
    events,
    generate,
    post,
    power_of,
    raw_generate,
    together,
)
from integration_tests.pivot.problems import problems
from integration_tests.server import Server

pytestmark = pytest.mark.server

PROMPTS = [problem.text for family in ("Q", "R") for problem in problems(family, 20, seed=70)]
GREEDY = {"temperature": 0, "max_new_tokens": 40}
DRAWS = 1500


@contextmanager
def power_beside(server: Server, requests: int = 3) -> Iterator[list[dict[str, Any]]]:
    """Power requests without a pause, as many at once as said; yields their answers so far."""
    answers: list[dict[str, Any]] = []
    done = threading.Event()

    def work(seed: int) -> None:
        while not done.is_set():
            answers.append(generate(server, seed=seed, steps=4))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(requests)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert len(answers) >= requests
    assert {power_of(answer)["sampler"] for answer in answers} == {"power"}


def greedy(server: Server) -> list[dict[str, Any]]:
    """Greedy answers to all prompts, eight at a time."""
    answers: list[dict[str, Any]] = []
    for at in range(0, len(PROMPTS), 8):
        calls = [
            functools.partial(raw_generate, server, prompt, sampling_params=GREEDY)
            for prompt in PROMPTS[at : at + 8]
        ]
        answers += together(calls)
    return answers


@pytest.fixture(scope="module")
def reference(plain_server: Server) -> list[dict[str, Any]]:
    """What SGLang answers without the plugin."""
    return greedy(plain_server)


def shown(answers: Sequence[dict[str, Any]]) -> list[tuple[str, list[int]]]:
    """Text and ids."""
    return [(answer["text"], answer["output_ids"]) for answer in answers]


def test_greedy_outputs_are_identical(pivot_server: Server, reference: list[dict[str, Any]]) -> None:
    assert len(reference) == 40
    assert shown(greedy(pivot_server)) == shown(reference)


def test_greedy_outputs_are_identical_beside_power_requests(
    pivot_server: Server, reference: list[dict[str, Any]]
) -> None:
    with power_beside(pivot_server):
        assert shown(greedy(pivot_server)) == shown(reference)


def test_meta_info_has_the_same_keys(pivot_server: Server, reference: list[dict[str, Any]]) -> None:
    with power_beside(pivot_server):
        answers = greedy(pivot_server)
    assert {frozenset(a["meta_info"]) for a in answers} == {frozenset(a["meta_info"]) for a in reference}


def test_streams_and_logprobs_are_identical(pivot_server: Server, plain_server: Server) -> None:
    body = {
        "text": PROMPT,
        "stream": True,
        "sampling_params": GREEDY,
        "return_logprob": True,
        "top_logprobs_num": 2,
    }
    with power_beside(pivot_server):
        ours = events(pivot_server, "/generate", body)
    stock = events(plain_server, "/generate", body)
    assert ours[-1]["text"] == stock[-1]["text"]
    assert not any(key.startswith(("power", "sglang_power")) for event in ours for key in event["meta_info"])
    for name in ("output_token_logprobs", "output_top_logprobs"):
        mine, theirs = (event[-1]["meta_info"][name] for event in (ours, stock))
        assert len(mine) == len(theirs)
    values = [[v for v, _, _ in e[-1]["meta_info"]["output_token_logprobs"]] for e in (ours, stock)]
    assert values[0] == pytest.approx(values[1], abs=1e-3)


def test_openai_answers_are_identical(pivot_server: Server, plain_server: Server) -> None:
    def ask(server: Server, model: str) -> dict[str, Any]:
        response = client(server).chat.completions.create(
            model=model, messages=[{"role": "user", "content": PROMPT}], max_tokens=40, temperature=0
        )
        answer = response.model_dump(exclude={"id", "created", "model"})
        answer["usage"].pop("prompt_tokens_details")  # tells what was asked before
        return answer

    with power_beside(pivot_server):
        assert ask(pivot_server, "pivot") == ask(plain_server, "plain")


@pytest.mark.parametrize(
    ("prompt", "sampling"), [(PROMPT + "g", {}), ("Q7+3*2-8:", {"temperature": 1.5, "top_p": 0.95})]
)
def test_sampled_tokens_have_the_same_law(
    pivot_server: Server, plain_server: Server, prompt: str, sampling: dict[str, Any]
) -> None:
    """Two-sample G-test on the first token, 1,500 draws each; the ten digits are about equally likely."""
    params = {"max_new_tokens": 1, "n": 250, **sampling}

    def draw(server: Server) -> Counter[str]:
        return Counter(
            answer["text"]
            for _ in range(DRAWS // params["n"])
            for answer in raw_generate(server, prompt, sampling_params=params)
        )

    with power_beside(pivot_server):
        ours = draw(pivot_server)
    stock = draw(plain_server)
    assert ours.total() == stock.total() == DRAWS
    common = [token for token in ours | stock if ours[token] + stock[token] >= 20]
    table = [
        [counts[token] for token in common] + [DRAWS - sum(counts[token] for token in common)]
        for counts in (ours, stock)
    ]
    table = [[row[i] for i in range(len(table[0])) if table[0][i] + table[1][i] > 0] for row in table]
    assert len(table[0]) >= 8
    assert stats.chi2_contingency(table, lambda_="log-likelihood").pvalue > 0.001


def test_no_key_of_ours_in_mixed_batches(pivot_server: Server) -> None:
    """Plain and power prompts of one list share their decode batches."""
    prompts = PROMPTS[:12]
    params = [
        {"max_new_tokens": 24, "custom_params": QUICK} if i % 2 else {"max_new_tokens": 24}
        for i in range(len(prompts))
    ]
    answers = post(pivot_server, "/generate", {"text": prompts, "sampling_params": params}).json()
    for i, answer in enumerate(answers):
        ours = {key for key in answer["meta_info"] if key.startswith(("power", "sglang_power"))}
        assert ours == ({"power"} if i % 2 else set())
