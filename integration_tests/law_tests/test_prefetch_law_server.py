"""The law of chains with several proposals in flight, and with several tries of a step, on a real server.

Chains start from exact draws of the enumerated law model, where any number of right steps keeps the target. A
sample below KEPT is drawn once more with other seeds, and the second one decides at 1e-2: a right sampler
fails with probability 1e-5 for fresh seeds. Seeds are fixed, and draws depend on them and on logits that
batching changes by 1e-6 or so.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from integration_tests.helpers.clients import power_of
from integration_tests.helpers.goodness_of_fit import KEPT, g_test
from integration_tests.law_model import HORIZON, PROMPT, AnswerTree, tabular_model
from integration_tests.server import Server
from integration_tests.tests.test_law_server import Case, Json, counted, drawn, generate

pytestmark = pytest.mark.server

ANSWERS = 500

CHAIN: Json = {"alpha": 2.0, "proposal_temperature": 1.0, "block_size": HORIZON, "steps": 12, "prefetch": 8}
LAWS: dict[str, Json] = {
    "prefetch": CHAIN,
    "prefetch, entropy cut": {**CHAIN, "cut": "entropy"},
    "tries": {**CHAIN, "steps": 4, "tries": 3, "prefetch": 2},
}


@pytest.fixture(scope="module")
def tree(law_model: Path) -> AnswerTree:
    """Every answer, with its probability."""
    return AnswerTree(tabular_model(law_model, PROMPT, HORIZON))


async def sampled(server: Server, tree: AnswerTree, power: Json, seed: int) -> float:
    """p-value of so many chains from exact draws, all of which say what they did."""
    case = Case(seed=seed, power=power, answers=ANSWERS, drafted=True)
    target = tree.target(case.config)
    drafts = drawn(tree, target, ANSWERS, seed=seed)
    answers = await generate(server, case.bodies(drafts))
    reports = [power_of(answer) for answer in answers]
    assert {(report["law"], report["stopped_by"]) for report in reports} == {("power", "completed")}
    assert {report["steps"] for report in reports} == {power["steps"]}
    assert all(0 <= report["discarded"] <= report["prefetched"] for report in reports)
    assert sum(report["prefetched"] for report in reports) > ANSWERS
    assert sum(report["wasted_tokens"] for report in reports) > 0
    shadows = [report["shadow"] for report in reports if "shadow" in report]
    assert sum(shadow["violations"] for shadow in shadows) == 0
    moved = sum(tuple(a["output_ids"]) != draft for a, draft in zip(answers, drafts, strict=True))
    p = g_test(counted(tree, [tuple(answer["output_ids"]) for answer in answers]), target)
    print(f"p {p:.3f}, moved {moved / ANSWERS:.2f}")
    assert moved > ANSWERS / 2
    return p


@pytest.mark.parametrize("power", LAWS.values(), ids=LAWS)
async def test_chains_keep_the_target(law_server: Server, tree: AnswerTree, power: Json) -> None:
    if await sampled(law_server, tree, power, 800_000) > KEPT:
        return
    assert await sampled(law_server, tree, power, 900_000) > 1e-2
