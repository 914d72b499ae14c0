"""`cot`, `vote` and `best_of` through the real server: token ledger, spans, confidence, costs, bad input.

CoT-decoding's accuracy is that of the demo (200 problems); here 40 problems of family Q have to be right in
at least 36 cases, which a sampler that is right in 98% of them misses with probability 2e-3 and one that is
right in half of them reaches with probability 1e-7. The draws are seeded.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import httpx
import pytest

from integration_tests.helpers.clients import (
    EOS,
    MESSAGES,
    PROMPT,
    PROMPT_Q,
    abort,
    client,
    events,
    eventually,
    generate,
    metric,
    post,
    power_of,
    quiet,
    raw_generate,
    reports,
    running,
    scheduled,
    together,
)
from integration_tests.pivot.problems import is_correct, problems
from integration_tests.server import Server

pytestmark = pytest.mark.server

DIGIT: dict[str, Any] = {"answer": "regex", "answer_regex": r"A(\d)"}

REPORT = {
    "sampler",
    "params",
    "seed",
    "decoded_tokens",
    "prefilled_tokens",
    "wasted_tokens",
    "depth",
    "children",
    "law",
    "fallback_reason",
    "log_p",
    "paths",
    "classes",
    "chosen",
    "comparisons",
    "stopped_by",
    "weight_version",
    "version",
}

_fresh = itertools.count(100)


def fresh_prompt() -> str:
    """A prompt that no test has asked before, so that nothing of it is cached."""
    number = next(_fresh)
    return f"Q{number % 10}+{number // 10 % 10}*{number // 100 % 10}-{number % 7}+3*2:"


def ask(server: Server, sampler: str, prompt: str = PROMPT_Q, sampling: Any = None, **params: Any) -> Any:
    """One answer, or a list of n."""
    custom = {"sampler": sampler, **params}
    body = {"max_new_tokens": 48, "custom_params": custom, **(sampling or {})}
    return raw_generate(server, prompt, sampling_params=body)


# --- cot ----------------------------------------------------------------------------------------------


def test_cot_prefills_the_prompt_once(pivot_server: Server) -> None:
    prompt = fresh_prompt()
    answer = ask(pivot_server, "cot", prompt, k=10, **DIGIT)
    power = power_of(answer)
    prompt_tokens = answer["meta_info"]["prompt_tokens"]
    assert power.keys() == REPORT
    assert len(power["paths"]) == 10
    # Each of the ten paths, and the question for the first tokens, computes the prompt's last token again.
    assert power["prefilled_tokens"] == prompt_tokens - answer["meta_info"]["cached_tokens"] + 11
    assert power["children"] == 12
    assert power["decoded_tokens"] == 1 + sum(path["tokens"] for path in power["paths"])
    # Three launches follow one another: the prompt, the question with its one token, the paths.
    assert power["depth"] == 3 + 1 + max(path["tokens"] for path in power["paths"])
    assert (power["sampler"], power["law"], power["stopped_by"]) == ("cot", "selection", "completed")
    assert answer["meta_info"]["completion_tokens"] == len(answer["output_ids"])


def test_paths_are_the_likely_first_tokens_continued_greedily(pivot_server: Server) -> None:
    power = power_of(ask(pivot_server, "cot", k=10, **DIGIT))
    first = [path["first_log_p"] for path in power["paths"]]
    assert first == sorted(first, reverse=True)
    plain = raw_generate(
        pivot_server,
        PROMPT_Q,
        sampling_params={"max_new_tokens": 1, "temperature": 1.0},
        return_logprob=True,
        top_logprobs_num=10,
    )
    expected = [entry[0] for entry in plain["meta_info"]["output_top_logprobs"][0]]
    assert first == pytest.approx(expected, abs=1e-4)
    greedy = raw_generate(pivot_server, PROMPT_Q, sampling_params={"max_new_tokens": 48, "temperature": 0.0})
    assert power["paths"][0]["text"] == greedy["text"]
    assert len({path["text"][:1] for path in power["paths"]}) == 10


def test_answers_their_spans_and_confidences(pivot_server: Server) -> None:
    """Delta from the server's own top-2 probabilities of the answer's token, for every path."""
    power = power_of(ask(pivot_server, "cot", k=5, **DIGIT))
    prompt_ids = raw_generate(
        pivot_server, PROMPT_Q, sampling_params={"max_new_tokens": 0}, return_prompt_token_ids=True
    )["prompt_token_ids"]
    answered = [path for path in power["paths"] if path["answer"] is not None]
    assert answered
    for path in answered:
        start, end = path["answer_span"]
        assert path["text"][start:end] == path["answer"]
        scored = raw_generate(
            pivot_server,
            PROMPT_Q + path["text"][:start],
            sampling_params={"max_new_tokens": 1, "temperature": 1.0},
            return_logprob=True,
            top_logprobs_num=2,
        )
        assert scored["meta_info"]["prompt_tokens"] == len(prompt_ids) + start
        probs = {entry[1]: 2.718281828 ** entry[0] for entry in scored["meta_info"]["output_top_logprobs"][0]}
        best, second = sorted(probs.values(), reverse=True)
        assert path["confidence"] == pytest.approx(best - second, abs=1e-3)
    sums: dict[str, float] = {}
    for path in answered:
        sums[path["answer"]] = sums.get(path["answer"], 0.0) + path["confidence"]
    reported = {one["representative"]: one["weight"] for one in power["classes"] if one["representative"]}
    assert reported == {value: pytest.approx(total, abs=1e-6) for value, total in sums.items()}
    assert power["paths"][power["chosen"]["index"]]["answer"] == max(sums, key=lambda value: sums[value])


def test_cot_finds_the_path_that_greedy_misses(pivot_server: Server) -> None:
    asked = problems("Q", 40, 77)
    calls = [functools.partial(ask, pivot_server, "cot", one.text, k=10, **DIGIT) for one in asked]
    answers = together(calls)
    right = sum(is_correct(problem, answer["text"]) for problem, answer in zip(asked, answers, strict=True))
    print("right", right)
    assert right >= 36


def test_a_stop_among_the_first_tokens_is_a_path_without_an_answer(pivot_server: Server) -> None:
    """Behind a whole answer the stop is the most likely token."""
    power = power_of(ask(pivot_server, "cot", PROMPT_Q + "A4.", k=3, **DIGIT))
    first = power["paths"][0]
    assert (first["text"], first["tokens"], first["finished"]) == ("", 1, True)
    assert (first["answer"], first["confidence"]) == (None, None)


def test_min_first_p_and_max(pivot_server: Server) -> None:
    power = power_of(ask(pivot_server, "cot", k=10, min_first_p=0.05, select="max", **DIGIT))
    assert all(path["first_log_p"] >= -3.0 for path in power["paths"])
    scores = [path["score"] for path in power["paths"] if path["score"] is not None]
    assert power["paths"][power["chosen"]["index"]]["score"] == max(scores)


def test_forking_after_a_prefix(pivot_server: Server) -> None:
    power = power_of(ask(pivot_server, "cot", k=4, fork_at="after_prefix", fork_prefix="b7+", **DIGIT))
    assert {path["text"][:3] for path in power["paths"]} == {"b7+"}
    assert len({path["text"][3] for path in power["paths"]}) == 4


def test_continuations_by_a_policy_follow_the_requests_temperature(pivot_server: Server) -> None:
    policy: dict[str, Any] = {
        "continuation_policy": {"sampler": "temperature", "value": 2.0},
        "seed": 3,
    }
    hot = power_of(ask(pivot_server, "cot", k=6, sampling={"temperature": 1.5}, **policy, **DIGIT))
    again = power_of(ask(pivot_server, "cot", k=6, sampling={"temperature": 1.5}, **policy, **DIGIT))
    greedy = power_of(ask(pivot_server, "cot", k=6, **DIGIT))
    texts = [[path["text"] for path in one["paths"]] for one in (hot, again, greedy)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_the_model_may_be_asked_for_the_answer(pivot_server: Server) -> None:
    power = power_of(ask(pivot_server, "cot", k=3, answer="continuation"))
    assert power["children"] == 2 + 2 * 3
    assert power["decoded_tokens"] > 1 + sum(path["tokens"] for path in power["paths"])


# --- vote and best_of ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "base",
    [
        None,
        {"sampler": "top_n_sigma", "n": 1.5},
        {"sampler": "power", "block_size": 16, "steps": 2},
    ],
    ids=["plain", "policy", "power"],
)
def test_vote_returns_the_most_frequent_answer(pivot_server: Server, base: Any) -> None:
    answer = ask(pivot_server, "vote", samples=6, seed=4, **({} if base is None else {"base": base}), **DIGIT)
    again = ask(pivot_server, "vote", samples=6, seed=4, **({} if base is None else {"base": base}), **DIGIT)
    power = power_of(answer)
    assert [path["text"] for path in power["paths"]] == [p["text"] for p in power_of(again)["paths"]]
    values = [path["answer"] for path in power["paths"]]
    counts = {value: values.count(value) for value in values if value is not None}
    assert counts[power["paths"][power["chosen"]["index"]]["answer"]] == max(counts.values())
    assert sum(one["weight"] or 0 for one in power["classes"]) == pytest.approx(1.0)
    assert answer["text"] == power["paths"][power["chosen"]["index"]]["text"]
    assert power["decoded_tokens"] >= sum(path["tokens"] for path in power["paths"])


def test_votes_may_be_weighted(pivot_server: Server) -> None:
    power = power_of(ask(pivot_server, "vote", samples=12, seed=2, weight="power", alpha=4.0, **DIGIT))
    assert 1.0 <= power["ess"] <= 12.0
    scores = [path["score"] for path in power["paths"]]
    assert scores == pytest.approx([3.0 * path["log_p"] for path in power["paths"]], abs=1e-3)


def test_samples_follow_the_requests_own_temperature(pivot_server: Server) -> None:
    cold = power_of(ask(pivot_server, "vote", samples=5, seed=1, sampling={"temperature": 0.0}, **DIGIT))
    assert len({path["text"] for path in cold["paths"]}) == 1
    hot = power_of(ask(pivot_server, "vote", samples=5, seed=1, sampling={"temperature": 1.3}, **DIGIT))
    assert len({path["text"] for path in hot["paths"]}) > 1
    assert [one["params"]["temperature"] for one in (cold, hot)] == [0.0, 1.3]


def test_best_of_returns_the_likeliest_sample(pivot_server: Server) -> None:
    power = power_of(ask(pivot_server, "best_of", samples=8, seed=3, score="log_p"))
    log_p = [path["log_p"] for path in power["paths"]]
    assert power["log_p"] == pytest.approx(max(log_p))
    assert power["chosen"]["reason"] == "log_p"
    assert sorted(member for one in power["classes"] for member in one["members"]) == list(range(8))


# --- SGLang's surface ---------------------------------------------------------------------------------


def test_n_answers_differ_and_share_the_prompt(pivot_server: Server) -> None:
    prompt = fresh_prompt()
    asked: dict[str, Any] = {"samples": 3, "stopping": "never", "seed": 5, **DIGIT}
    answers = ask(pivot_server, "vote", prompt, sampling={"n": 2}, **asked)
    first, second = (power_of(one) for one in answers)
    assert [p["text"] for p in first["paths"]] != [p["text"] for p in second["paths"]]
    meta = answers[0]["meta_info"]
    assert first["prefilled_tokens"] == meta["prompt_tokens"] - meta["cached_tokens"] + 3
    assert second["prefilled_tokens"] == 3


@pytest.mark.parametrize("sampler", ["cot", "vote", "best_of"])
def test_streams_end_with_the_chosen_answer(pivot_server: Server, sampler: str) -> None:
    custom = {"sampler": sampler, "seed": 6, **DIGIT}
    body = {"text": PROMPT_Q, "sampling_params": {"max_new_tokens": 48, "custom_params": custom}}
    whole = raw_generate(pivot_server, PROMPT_Q, sampling_params=body["sampling_params"])
    streamed = events(pivot_server, "/generate", {**body, "stream": True})
    assert streamed[-1]["text"] == whole["text"]
    texts = [[path["text"] for path in power_of(one)["paths"]] for one in (streamed[-1], whole)]
    assert texts[0] == texts[1]


def test_openai_clients_see_the_paths(pivot_server: Server) -> None:
    custom = {"sampler": "cot", "k": 4, **DIGIT}
    chat = client(pivot_server).chat.completions.create(
        model="pivot", messages=MESSAGES, max_tokens=48, extra_body={"custom_params": custom}
    )
    report = reports(chat)[0]
    assert chat.choices[0].message.content == report["paths"][report["chosen"]["index"]]["text"]
    completion = client(pivot_server).completions.create(
        model="pivot", prompt=PROMPT, max_tokens=48, extra_body={"custom_params": custom}
    )
    assert reports(completion)[0]["sampler"] == "cot"


def test_log_probabilities_are_those_of_the_chosen_answer(pivot_server: Server) -> None:
    custom = {"sampler": "cot", "k": 4, **DIGIT}
    answer = raw_generate(
        pivot_server,
        PROMPT_Q,
        sampling_params={"max_new_tokens": 48, "custom_params": custom},
        return_logprob=True,
    )
    entries = answer["meta_info"]["output_token_logprobs"]
    assert [entry[1] for entry in entries] == answer["output_ids"]
    assert sum(entry[0] for entry in entries) == pytest.approx(power_of(answer)["log_p"], abs=1e-3)
    assert answer["output_ids"][-1] == EOS


def test_answers_are_counted_in_the_metrics(pivot_server: Server) -> None:
    before = metric(pivot_server, "sglang_power_requests_total", sampler="vote")
    ask(pivot_server, "vote", samples=2, seed=1, **DIGIT)
    assert metric(pivot_server, "sglang_power_requests_total", sampler="vote") == before + 1


# --- what goes wrong ----------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], str]] = [
    ({"sampler": "cot", "k": 0}, "k=0"),
    ({"sampler": "cot", "k": 100_000}, "k=100000"),
    ({"sampler": "vote", "samples": 1000}, "samples=1000"),
    ({"sampler": "cot", "paths": 3}, "paths=3"),
    ({"sampler": "cot", "fork_at": "after_reasoning"}, "fork_at='after_reasoning'"),
    ({"sampler": "cot", "fork_at": "after_prefix", "fork_prefix": "b7+3=0;" * 20}, "fork_prefix="),
    ({"sampler": "cot", "fork_at": "after_prefix", "fork_prefix": "b<eos>"}, "fork_prefix="),
    ({"sampler": "cot", "answer": "regex", "answer_regex": "(a"}, "answer_regex='(a'"),
    ({"sampler": "cot", "equivalence": "same"}, "equivalence='same'"),
    ({"sampler": "vote", "samples": 0}, "samples=0"),
    ({"sampler": "vote", "base": {"sampler": "cot"}}, "base.sampler='cot'"),
    ({"sampler": "vote", "max_total_tokens": 50}, "max_total_tokens=50"),
    ({"sampler": "best_of", "score": "reward"}, "score='reward'"),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("custom", "named"), BAD, ids=[named for _, named in BAD])
def test_bad_requests_are_400_before_any_token(
    pivot_server: Server, custom: dict[str, Any], named: str, stream: bool
) -> None:
    before = scheduled(pivot_server)
    params = {"max_new_tokens": 48, "custom_params": custom}
    body = {"text": PROMPT_Q, "sampling_params": params, "stream": stream}
    response = post(pivot_server, "/generate", body)
    assert response.status_code == httpx.codes.BAD_REQUEST, response.text
    assert named in response.text
    assert scheduled(pivot_server) == before


def test_a_catastrophic_pattern_costs_its_own_answers_only(pivot_server: Server) -> None:
    pattern: dict[str, Any] = {"answer": "regex", "answer_regex": r"(?:(?:[a-zA-Z0-9+*=;.-]+)+)+!"}
    answer = ask(pivot_server, "vote", samples=2, seed=1, **pattern)
    power = power_of(answer)
    assert power["chosen"]["reason"] == "no_answer"
    assert {path.get("note") for path in power["paths"]} <= {None, "the search for the answer timed out"}
    assert answer["text"]


def test_a_deadline_returns_what_there_is(pivot_server: Server) -> None:
    sampling = {"max_new_tokens": 200, "ignore_eos": True}
    power = power_of(ask(pivot_server, "vote", samples=4, deadline_ms=1, sampling=sampling, **DIGIT))
    assert power["stopped_by"] == "deadline_ms"
    assert all(1 <= path["tokens"] < 200 for path in power["paths"])


def test_an_abort_leaves_nothing_behind(pivot_server: Server) -> None:
    custom = {"sampler": "vote", "samples": 8, "base": {"sampler": "power", "block_size": 8, "steps": 400}}
    params = {"max_new_tokens": 96, "ignore_eos": True, "custom_params": custom}
    body = {"text": PROMPT_Q, "sampling_params": params, "rid": "vote-to-abort"}
    before = scheduled(pivot_server)
    with running(lambda: post(pivot_server, "/generate", body)) as future:
        eventually(lambda: scheduled(pivot_server) >= before + 10, "children run")
        abort(pivot_server, rid="vote-to-abort")
        answer = future.result().json()
    assert answer["meta_info"]["finish_reason"]["type"] == "abort"
    assert power_of(answer)["stopped_by"] == "abort"
    quiet(pivot_server)
    assert generate(pivot_server)["text"]
