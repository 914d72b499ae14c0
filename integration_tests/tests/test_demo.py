"""The demo's measurement on a few problems: rows by name, counters that add up, controls that pay as much."""

from __future__ import annotations

import httpx

from integration_tests.demo import BRANCH, COT, PROBLEM_SEED, one_chain, one_tree, table
from integration_tests.evaluation import Evaluator, Outcome, Run, mcnemar_p
from integration_tests.pivot.problems import problems
from integration_tests.server import Server

FIELDS = {
    "suite",
    "sampler",
    "params",
    "accuracy",
    "ci95",
    "decoded_per_returned",
    "prefilled_per_returned",
    "depth_per_returned",
    "acceptance_rate",
    "wall_vs_plain",
}


async def test_rows_have_the_fixed_names_and_controls_decode_at_least_as_much(pivot_server: Server) -> None:
    asked = problems("R", 6, PROBLEM_SEED)
    async with httpx.AsyncClient(base_url=pivot_server.url, timeout=300) as client:
        evaluator = Evaluator(client)
        plain = await evaluator.plain("plain", asked, 1.0)
        power = await evaluator.own("power", asked, {"alpha": 4.0, "block_size": 16, "steps": 4})
        cot = await evaluator.own("cot", asked, COT)
        branch = await evaluator.own("branch", asked, BRANCH)
        best_of, vote = await evaluator.controls(asked, plain, power)
    assert (best_of.sampler, vote.sampler) == ("best_of @ power", "vote @ power")
    for run in (plain, power, cot, branch, best_of, vote):
        row = run.row("R", plain)
        assert row.keys() == FIELDS
        assert row["ci95"][0] <= row["accuracy"] <= row["ci95"][1]
        assert row["decoded_per_returned"] >= 1.0
    assert best_of.total("decoded") == vote.total("decoded")
    assert best_of.params["samples"] * plain.total("decoded") >= power.total("decoded")
    assert power.total("steps") >= 4 * len(asked)
    assert "| R | power |" in table([power.row("R", plain)])


def test_a_traced_chain_can_be_drawn(pivot_server: Server) -> None:
    steps = one_chain(pivot_server.url)
    assert [step["step"] for step in steps] == list(range(len(steps)))
    assert {"cut", "proposal_length", "accepted", "early_rejected"} <= steps[0].keys()


def test_a_tree_is_printed_with_its_forks_and_its_choice(pivot_server: Server) -> None:
    head, *lines = one_tree(pivot_server.url).splitlines()
    asked = problems("R", 1, PROBLEM_SEED)[0]
    assert head.startswith(asked.text)
    branches = [line for line in lines if "entropy (H" in line]
    assert len(branches) == 2 * len(asked.operations)
    assert sum("'g" in line for line in branches) == sum("'w" in line for line in branches)
    assert sum("<== chosen" in line for line in lines) == 1


def test_the_paired_test_counts_discordant_pairs() -> None:
    def run(*correct: bool) -> Run:
        return Run("x", {}, tuple(Outcome(one, 1, 1, 1, 1) for one in correct), 1.0)

    assert mcnemar_p(run(True, True), run(True, True)) == 1.0
    assert mcnemar_p(run(*[True] * 10), run(*[False] * 10)) == 2.0**-10
