"""Branching on the pivot model's family R: what it is for, against controls of at least equal cost.

Branching by the default law draws nothing, so its results repeat; the controls' draws are seeded. 60 held-out
problems: at least 54 have to be right, which a sampler that is right in 98% of them misses with probability
2e-4; a control that is right in 25% of them reaches 24 with probability 7e-3, one in 20% with 3e-4.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
from scipy import stats

from integration_tests.helpers.clients import power_of, raw_generate, together
from integration_tests.pivot.problems import CHOICES, Problem, is_correct, is_worked, problems
from integration_tests.server import Server

pytestmark = [pytest.mark.server, pytest.mark.long]

PROBLEMS = problems("R", 60, 2024)
AT_ONCE = 20
SAMPLES = 4
"""Of the controls: decodes more than branching does."""

Answers = list[dict[str, Any]]

DIGIT: dict[str, Any] = {"answer": "regex", "answer_regex": r"A(\d)"}
POLICIES: dict[str, dict[str, Any]] = {
    "lookahead": {"lookahead_tokens": 10},
    "beam": {"policy": "beam", "beam": 2},
}


def asked(server: Server, **custom: Any) -> Answers:
    """Every problem, each with a seed of its own."""
    calls = [
        functools.partial(
            raw_generate,
            server,
            problem.text,
            sampling_params={"max_new_tokens": 96, "custom_params": {**custom, **DIGIT, "seed": seed}},
        )
        for seed, problem in enumerate(PROBLEMS)
    ]
    return [answer for i in range(0, len(calls), AT_ONCE) for answer in together(calls[i : i + AT_ONCE])]


@pytest.fixture(scope="module")
def branched(pivot_server: Server) -> dict[str, Answers]:
    """Answers by policy."""
    return {
        name: asked(pivot_server, sampler="branch", **policy, return_tree=True)
        for name, policy in POLICIES.items()
    }


def right(answers: Answers) -> int:
    """How many state the right digit."""
    return sum(is_correct(problem, one["text"]) for problem, one in zip(PROBLEMS, answers, strict=True))


def tokens(answers: Answers) -> tuple[int, int]:
    """Decoded and returned."""
    decoded = sum(power_of(one)["decoded_tokens"] for one in answers)
    return decoded, sum(len(one["output_ids"]) for one in answers)


@pytest.mark.parametrize("policy", POLICIES)
def test_it_works_where_greedy_guesses(branched: dict[str, Answers], policy: str) -> None:
    answers = branched[policy]
    decoded, returned = tokens(answers)
    assert right(answers) >= 54
    assert decoded <= 6 * returned
    assert sum(is_worked(problem, one["text"]) for problem, one in zip(PROBLEMS, answers, strict=True)) >= 54


@pytest.mark.parametrize("control", ["best_of", "vote"])
def test_plain_draws_of_the_same_cost_do_not(
    pivot_server: Server, branched: dict[str, Answers], control: str
) -> None:
    score = {"score": "log_p"} if control == "best_of" else {}
    answers = asked(pivot_server, sampler=control, samples=SAMPLES, **score)
    assert tokens(answers)[0] >= max(tokens(each)[0] for each in branched.values())
    assert right(answers) < 24
    for policy in POLICIES:
        assert sign_test(branched[policy], answers) < 1e-6


def sign_test(first: Answers, second: Answers) -> float:
    """Exact one-sided p of `first` being right more often on the same problems."""
    pairs = [
        (is_correct(problem, one["text"]), is_correct(problem, other["text"]))
        for problem, one, other in zip(PROBLEMS, first, second, strict=True)
    ]
    wins, losses = pairs.count((True, False)), pairs.count((False, True))
    p: float = stats.binomtest(wins, wins + losses, alternative="greater").pvalue
    return p


def pivots_of(problem: Problem) -> list[int]:
    """Where the operations of a wholly worked answer begin; `w7+3=0;` has seven characters, all tokens."""
    return [7 * i for i in range(len(problem.operations))]


def path_to(nodes: list[dict[str, Any]], number: int | None) -> list[dict[str, Any]]:
    """A node and those above it, the root first."""
    if number is None:
        return []
    return [*path_to(nodes, nodes[number]["parent"]), nodes[number]]


@pytest.mark.parametrize("policy", POLICIES)
def test_worked_answers_fork_at_every_pivot_and_nowhere_else(
    branched: dict[str, Answers], policy: str
) -> None:
    worked = 0
    for problem, answer in zip(PROBLEMS, branched[policy], strict=True):
        if not is_worked(problem, answer["text"]):
            continue
        worked += 1
        nodes = power_of(answer)["tree"]["nodes"]
        chosen = next(node["node"] for node in nodes if node["fate"] == "chosen")
        forks = path_to(nodes, chosen)[1:]
        assert [node["span"][0] for node in forks] == pivots_of(problem)
        for node in forks:
            assert node["trigger"] == "entropy"
            assert node["entropy"] == pytest.approx(0.673, abs=0.05), "0.6 against 0.4"
            siblings = [one for one in nodes if one["parent"] == node["parent"]]
            assert {one["text"][:1] for one in siblings} <= {*CHOICES, ""}, "pruned before it was drawn"
            assert node["text"][0] == "w"
    assert worked >= 54


def test_lookahead_forks_at_pivots(branched: dict[str, Answers]) -> None:
    """Few other rows are as uncertain: some products. A guess forks at its digit, but is given up before."""
    nodes = [node for one in branched["lookahead"] for node in power_of(one)["tree"]["nodes"][1:]]
    elsewhere = [node for node in nodes if node["text"][0] not in CHOICES]
    assert len(elsewhere) <= 0.03 * len(nodes)
    assert len(nodes) >= 2 * sum(len(problem.operations) for problem in PROBLEMS)
