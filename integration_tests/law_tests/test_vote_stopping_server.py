"""Votes that end early, samples that are ended and exponents that move, through the real server.

The draws are seeded. The server of these tests draws 16 answers at most.
"""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from sglang_power.algorithms.votes import StoppingRule, UntilDecided

from integration_tests.helpers.clients import (
    PROMPT_Q,
    abort,
    events,
    eventually,
    post,
    power_of,
    quiet,
    raw_generate,
    running,
    scheduled,
)
from integration_tests.pivot.problems import Problem, problems
from integration_tests.server import Server

pytestmark = pytest.mark.server

DIGIT: dict[str, Any] = {"answer": "regex", "answer_regex": r"A(\d)"}
CHAIN: dict[str, Any] = {
    **{"sampler": "power", "alpha": 4.0, "proposal_temperature": 1.0},
    **{"block_size": 16, "steps": 4},
}
EASY = problems("Q", 12, 7)


def ask(server: Server, problem: Problem | str, sampling: Any = None, **custom: Any) -> Any:
    """One answer, or a list of n."""
    text = problem if isinstance(problem, str) else problem.text
    params = {"max_new_tokens": 48, "custom_params": {"sampler": "vote", **DIGIT, **custom}}
    return raw_generate(server, text, sampling_params={**params, **(sampling or {})})


def chosen_answer(power: dict[str, Any]) -> str | None:
    answer: str | None = power["paths"][power["chosen"]["index"]]["answer"]
    return answer


def longest_of_rounds(paths: list[dict[str, Any]], rule: StoppingRule) -> list[int]:
    """Tokens of the longest sample of each round, from the answers in their order."""
    labels: dict[str, int] = {}
    longest, start = [], 0
    while size := rule.next_round():
        samples, start = paths[start : start + size], start + size
        longest.append(max(path["tokens"] for path in samples))
        for path in samples:
            answer = path["answer"]
            rule.see(None if answer is None else labels.setdefault(answer, len(labels)))
    return longest


def test_a_decided_vote_gives_the_answer_of_the_whole_one(pivot_server: Server) -> None:
    drawn = 0
    for seed, problem in enumerate(EASY[:6]):
        asked = {"samples": 16, "seed": seed}
        early = power_of(ask(pivot_server, problem, window=4, **asked))
        whole = power_of(ask(pivot_server, problem, stopping="never", **asked))
        texts = [[path["text"] for path in power["paths"]] for power in (early, whole)]
        assert texts[0] == texts[1][: early["samples_drawn"]]
        assert chosen_answer(early) == chosen_answer(whole)
        assert (early["params"]["stopping"], early["params"]["window"]) == ("decided", 4)
        assert (whole["stopped"], whole["samples_drawn"], whole["rounds"]) == ("all_drawn", 16, 1)
        assert early["stopped"] == ("decided" if early["samples_drawn"] < 16 else "all_drawn")
        assert early["decoded_tokens"] == sum(path["tokens"] for path in early["paths"])
        longest = longest_of_rounds(early["paths"], UntilDecided(16, 4))
        assert early["rounds"] == len(longest)
        assert early["depth"] == 1 + len(longest) + sum(longest), "launches: the prompt's, one per round"
        drawn += early["samples_drawn"]
    assert drawn < 6 * 16


def test_certain_votes_end_early(pivot_server: Server) -> None:
    stopped = [
        power_of(ask(pivot_server, problem, samples=16, stopping="certain", error=0.3, window=4, seed=3))
        for problem in EASY
    ]
    certain = [power for power in stopped if power["stopped"] == "certain"]
    assert len(certain) >= 3
    assert min(power["samples_drawn"] for power in certain) < 16
    for power in stopped:
        assert power["stopped"] == "certain" or power["samples_drawn"] == 16
        assert (power["params"]["stopping"], power["params"]["error"]) == ("certain", 0.3)


@pytest.mark.parametrize("sampler", ["vote", "best_of"])
def test_samples_of_low_confidence_are_ended_in_the_server(pivot_server: Server, sampler: str) -> None:
    text = problems("R", 1, 5)[0].text
    asked: dict[str, Any] = {"sampler": sampler, "samples": 16, "seed": 2}
    whole = power_of(ask(pivot_server, text, **asked, stopping="never"))
    early = power_of(ask(pivot_server, text, **asked, stopping="never", drop_below=0.6, warmup=6))
    dropped = early["dropped"]["samples"]
    assert dropped
    assert min(dropped) >= 6
    assert early["chosen"]["index"] not in dropped
    shorter = 0
    for i, (path, full) in enumerate(zip(early["paths"], whole["paths"], strict=True)):
        assert full["text"].startswith(path["text"])
        assert ("note" in path) == (i in dropped)
        shorter += full["tokens"] - path["tokens"]
    assert shorter > 0
    # SGLang ends a request one token behind the row that a rule ended it at.
    assert early["wasted_tokens"] <= len(dropped)
    assert early["decoded_tokens"] <= whole["decoded_tokens"] - shorter + len(dropped)
    assert "might have been right" in early["dropped"]["heuristic"]


def test_the_exponent_moves_from_round_to_round(pivot_server: Server) -> None:
    rounds = set()
    for seed, problem in enumerate(problems("R", 3, 9)):
        power = power_of(ask(pivot_server, problem, alpha="adaptive", base=CHAIN, seed=seed))
        assert power["params"]["alpha"] == "adaptive"
        assert len(power["adaptation"]) == power["rounds"] == power["samples_drawn"] / 4
        assert power["adaptation"][0]["alpha"] == 4.0
        assert power["stopped"] in ("unanimity", "acceptance", "gradient", "budget")
        assert power["chosen"]["index"] >= power["samples_drawn"] - 4
        rounds.add(power["rounds"])
    assert max(rounds) <= 3


def test_choices_streams_and_routes_are_those_of_any_vote(pivot_server: Server) -> None:
    both = ask(pivot_server, PROMPT_Q, {"n": 2}, samples=8, seed=5)
    alone = ask(pivot_server, PROMPT_Q, samples=8, seed=5)
    assert both[0]["text"] == alone["text"]
    reports = [power_of(one) for one in both]
    assert all(report["samples_drawn"] == len(report["paths"]) for report in reports)
    custom = {"sampler": "vote", "samples": 8, "seed": 5, **DIGIT}
    body = {"text": PROMPT_Q, "sampling_params": {"max_new_tokens": 48, "custom_params": custom}}
    assert events(pivot_server, "/generate", {**body, "stream": True})[-1]["text"] == alone["text"]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"stopping": "decided", "weight": "power"}, "no useful bound"),
    ({"stopping": "certain", "samples": 4}, "stopping='certain'"),
    ({"sampler": "best_of", "stopping": "decided"}, "a maximum has no bound"),
    ({"stopping": "never", "window": 2}, "window=2"),
    ({"alpha": "adaptive"}, "alpha='adaptive'"),
    ({"samples": 16, "max_total_tokens": 480}, "max_total_tokens=480"),
]


@pytest.mark.parametrize(("custom", "named"), BAD, ids=[named for _, named in BAD])
def test_bad_requests_are_400_before_any_token(
    pivot_server: Server, custom: dict[str, Any], named: str
) -> None:
    before = scheduled(pivot_server)
    params = {"max_new_tokens": 48, "custom_params": {"sampler": "vote", **custom}}
    response = post(pivot_server, "/generate", {"text": PROMPT_Q, "sampling_params": params})
    assert response.status_code == httpx.codes.BAD_REQUEST, response.text
    assert named in response.text
    assert scheduled(pivot_server) == before


def test_a_deadline_ends_a_vote_between_its_rounds(pivot_server: Server) -> None:
    sampling = {"max_new_tokens": 200, "ignore_eos": True}
    power = power_of(ask(pivot_server, PROMPT_Q, sampling, samples=12, window=2, deadline_ms=1))
    assert (power["stopped_by"], power["stopped"]) == ("deadline_ms", "deadline_ms")
    assert power["samples_drawn"] == 2


def test_an_abort_in_mid_vote_leaves_nothing_behind(pivot_server: Server) -> None:
    custom = {"sampler": "vote", "samples": 16, "window": 1, **DIGIT}
    params = {"max_new_tokens": 160, "ignore_eos": True, "custom_params": custom}
    body = {"text": PROMPT_Q, "sampling_params": params, "rid": "rounds-to-abort"}
    before = scheduled(pivot_server)
    with running(lambda: post(pivot_server, "/generate", body)) as future:
        eventually(lambda: scheduled(pivot_server) >= before + 4, "rounds run")
        abort(pivot_server, rid="rounds-to-abort")
        power = power_of(future.result().json())
    assert (power["stopped_by"], power["stopped"]) == ("abort", "abort")
    assert 1 <= power["samples_drawn"] < 16
    quiet(pivot_server)
