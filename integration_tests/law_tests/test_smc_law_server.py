"""The law of `smc` through the real server, from nothing and from exact drafts.

The law model's answers are enumerated, so a null hypothesis is exact where runs start from exact drafts, and
exact up to CONVERGED where they do not: the TV of K runs to their limit, on the joint law of answer and Zhat,
is found from the estimates of many runs on the enumerated model. A test of a law is sequential: up to ROUNDS
samples with fresh seeds, the next one only where the last has p below DOUBTFUL, and a failure where all have.
So a right sampler fails one of the two tests with probability at most 2 * 0.015^3 = 7e-6; the control has p
below 1e-6 in its first sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sglang_power.engines.tabular import Prefix, TabularEngine
from sglang_power.request import SmcRequest
from sglang_power.rng import Key
from sglang_power.samplers.budgets import Budget
from sglang_power.samplers.particles import ParticleRuns
from sglang_power.types import FloatArray

from integration_tests.helpers.clients import power_of
from integration_tests.helpers.goodness_of_fit import REJECTED, g_test
from integration_tests.law_model import HORIZON, AnswerTree, tabular_model, total_variation
from integration_tests.law_model import PROMPT as LAW_PROMPT
from integration_tests.server import Server
from integration_tests.tests.test_law_server import counted, drawn, generate

Json = dict[str, Any]

ROUNDS, DOUBTFUL = 3, 0.015
CONVERGED = 0.005
RUNS_ENUMERATED = 1_000


@dataclass(frozen=True)
class Case:
    """One configuration.

    Args:
        seed: of the first answer.
        smc: custom_params.
        answers: of one sample.
        drafted: start from an exact draw of the target.
    """

    seed: int
    smc: Json
    answers: int
    drafted: bool = False

    @property
    def request(self) -> SmcRequest:
        return SmcRequest(**self.smc)

    def bodies(self, first: int, drafts: Sequence[Prefix] | None) -> list[Json]:
        """One request of /generate per answer."""
        more = [{} if drafts is None else {"initial_ids": list(drafts[i])} for i in range(self.answers)]
        return [
            {
                "text": LAW_PROMPT,
                "sampling_params": {
                    "max_new_tokens": HORIZON,
                    "custom_params": {"sampler": "smc", **self.smc, "seed": first + i, **own},
                },
            }
            for i, own in enumerate(more)
        ]


TEMPERED = {"alpha": 1.6, "proposal_temperature": 1.0}
CASES = {
    "6 runs of 4 with a ramp, chopthin": Case(
        seed=610_000,
        smc={
            **TEMPERED,
            **{"particles": 4, "runs": 6, "block_size": 2, "ramp": 2},
            **{"ess_threshold": 0.8, "resampling": "chopthin"},
        },
        answers=300,
    ),
    "exact drafts, 2 runs of 3": Case(
        seed=620_000,
        smc={**TEMPERED, "particles": 3, "runs": 2, "block_size": 2, "ess_threshold": 0.9},
        answers=300,
        drafted=True,
    ),
}
FRESH, DRAFTED = CASES.values()


@pytest.fixture(scope="module")
def tree(law_model: Path) -> AnswerTree:
    """Every answer, with its probability."""
    return AnswerTree(tabular_model(law_model, LAW_PROMPT, HORIZON))


def target(tree: AnswerTree, case: Case) -> FloatArray:
    config = case.request.smc_config(HORIZON)
    weights = np.exp(config.alpha * np.array([tree.log_p(y) for y in tree.nodes]))
    law = np.where(tree.in_space(HORIZON), weights, 0.0)
    return np.asarray(law / law.sum(), dtype=np.float64)


def check_answer(tree: AnswerTree, case: Case, answer: Json) -> None:
    """What one response says of itself is true."""
    power, ids = power_of(answer), tuple(answer["output_ids"])
    assert (power["sampler"], power["law"], power["stopped_by"]) == ("smc", "power", "completed")
    assert tree.in_space(HORIZON)[tree.index[ids]], f"{ids} is not an answer"
    assert power["log_p"] == pytest.approx(tree.log_p(ids), abs=1e-3)
    assert power["log_target"] == pytest.approx(case.request.alpha * tree.log_p(ids), abs=2e-3)
    assert len(power["log_z"]) == power["runs"] == case.request.runs
    assert "not_a_number" not in power
    ends = max(len(trace) for trace in power["ess"])
    assert 1 <= ends <= 3
    launches, answers = (1 + 1 + ends, 2) if case.drafted else (1 + ends, 1)
    assert launches < power["depth"] <= launches + HORIZON * answers, "the prompt, the draft, the blocks"


@pytest.mark.server
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_answers_follow_the_power_law(law_server: Server, tree: AnswerTree, case: Case) -> None:
    law, found = target(tree, case), []
    for number in range(ROUNDS):
        first = case.seed + number * case.answers
        drafts = drawn(tree, law, case.answers, seed=first) if case.drafted else None
        answers = await generate(law_server, case.bodies(first, drafts))
        for answer in answers:
            check_answer(tree, case, answer)
        assert sum(power_of(answer)["resamplings"] for answer in answers) > case.answers / 4
        found.append(g_test(counted(tree, [tuple(answer["output_ids"]) for answer in answers]), law))
        print("p", found[-1])
        if found[-1] >= DOUBTFUL:
            return
    pytest.fail(f"p-values {found}")


# --- enumerated: the setting is sharp ------------------------------------------------------------------


def test_the_setting_can_tell_laws_apart(tree: AnswerTree) -> None:
    """As many draws of the proposal law, which is p, are rejected."""
    law, p = target(tree, FRESH), target(tree, Case(0, {"alpha": 1.0}, 0))
    print("TV", total_variation(p, law))
    assert g_test(counted(tree, drawn(tree, p, FRESH.answers, seed=7)), law) < REJECTED
    assert g_test(counted(tree, drawn(tree, law, FRESH.answers, seed=7)), law) > DOUBTFUL


async def test_the_runs_have_forgotten_their_start(tree: AnswerTree) -> None:
    """TV of K runs to their limit: independence MH depends on the law of Zhat alone, here of 1,000 runs."""
    config = FRESH.request.smc_config(HORIZON)
    engine = TabularEngine(tree.model)
    runs = ParticleRuns(engine, config, Key(5), Budget(10**9), runs=RUNS_ENUMERATED)
    weights = np.exp(np.array((await runs.run()).log_z))
    ratio = weights[None, :] / weights[:, None]
    kernel = np.minimum(1.0, ratio) / RUNS_ENUMERATED
    kernel[np.diag_indices(RUNS_ENUMERATED)] += 1.0 - kernel.sum(axis=1)
    start = np.full(RUNS_ENUMERATED, 1.0 / RUNS_ENUMERATED)
    after = start @ np.linalg.matrix_power(kernel, FRESH.request.runs - 1)
    distance = total_variation(after, weights / weights.sum())
    print("TV", distance, "of one run", total_variation(start, weights / weights.sum()))
    assert distance < CONVERGED
