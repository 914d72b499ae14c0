"""The law of answers through the real server: p^alpha on Y_L, and not the laws of known mistakes.

algorithms.md 10.5. The law model has 1,365 answers; their probabilities are enumerated from its saved
weights, and so is the law of every whole run, right or wrong, so each null hypothesis is exact. G-tests,
cells with expectation below 5 pooled. A right sampler fails one of the 4 tests of a law with probability at
most 4 * 1e-3 for a fresh set of seeds (Bonferroni). Seeds are fixed, and a draw is a function of (seed,
position) and of logits that batching changes by 1e-6 or so: a rerun repeats its outcome, near ties apart.
Only low temperature, served by SGLang's own sampler, is a fresh sample each time: its own law fails there
with probability 1e-6. Figures are printed; pytest -rP shows them.

Early rejection runs in shadow mode (law.yaml): what it stops is generated to its end all the same, and
every full ratio must reject too.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import pytest
from sglang_power.algorithms.mh import MHConfig
from sglang_power.engines.tabular import Prefix
from sglang_power.request import parse_power
from sglang_power.types import FloatArray

from integration_tests.helpers.goodness_of_fit import KEPT, LARGE, REJECTED, g_test
from integration_tests.law_model import (
    EOS,
    HORIZON,
    LETTERS,
    PROMPT,
    AnswerTree,
    Mistake,
    tabular_model,
    total_variation,
)
from integration_tests.server import Server

Json = dict[str, Any]

CONVERGED = 0.005
"""Largest TV between the law of N steps and its limit."""

AT_ONCE = 64
"""Requests at work: as many as the server runs."""


@dataclass(frozen=True)
class Case:
    """One configuration of the sampler.

    Args:
        seed: of the first answer; the next ones follow.
        power: custom_params.
        sampling: sampling parameters that the client names.
        answers: sample size.
        drafted: start from an exact draw of the target.
    """

    seed: int
    power: Json
    sampling: Json = field(default_factory=dict)
    answers: int = 2_000
    drafted: bool = False

    @property
    def config(self) -> MHConfig:
        """The chain that the server is to run."""
        return parse_power({**self.power, **self.sampling}).mh_config(HORIZON)

    @property
    def steps(self) -> set[int]:
        """Of a whole run: N in each of two stages; in the last one alone where an extension finished it."""
        each = self.config.steps
        return {each} if self.drafted else {each, self.config.stages * each}

    def bodies(self, drafts: Sequence[Prefix] | None) -> list[Json]:
        """One request per answer."""
        return [
            self.body(self.seed + i, {} if drafts is None else {"initial_ids": list(drafts[i])})
            for i in range(self.answers)
        ]

    def body(self, seed: int, more: Json) -> Json:
        """One request of /generate."""
        custom = {"sampler": "power", **self.power, "seed": seed, **more}
        sampling = {"max_new_tokens": HORIZON, **self.sampling, "custom_params": custom}
        return {"text": PROMPT, "sampling_params": sampling}


CASES = {
    "uniform cut, tau = 1/alpha": Case(
        seed=100_000, power={"alpha": 1.2, "block_size": 4, "steps": 8, "cut": "uniform"}
    ),
    "entropy cut, tau above 1/alpha": Case(
        seed=200_000,
        power={
            "alpha": 1.4,
            "proposal_temperature": 0.85,
            "block_size": 3,
            "steps": 6,
            "cut": "entropy",
        },
        answers=1_300,
    ),
    "exact drafts, 20 steps, tau = 1": Case(
        seed=300_000,
        power={
            "alpha": 2.0,
            "proposal_temperature": 1.0,
            "block_size": 3,
            "steps": 20,
            "early_rejection": False,
        },
        drafted=True,
    ),
    "top_k": Case(
        seed=400_000,
        power={
            "alpha": 1.5,
            "proposal_temperature": 0.85,
            "block_size": 4,
            "steps": 6,
            "cut": "entropy",
        },
        sampling={"top_k": 3},
        answers=600,
    ),
}
UNIFORM, ENTROPY, DRAFTED, TOP_K = CASES.values()
SERVED = [
    pytest.param(case, id=name, marks=[pytest.mark.long] if case is not TOP_K else [])
    for name, case in CASES.items()
]


@pytest.fixture(scope="module")
def tree(law_model: Path) -> AnswerTree:
    """Every answer, with its probability."""
    return AnswerTree(tabular_model(law_model, PROMPT, HORIZON))


# --- samples --------------------------------------------------------------------------------------------


def counted(tree: AnswerTree, answers: Sequence[Prefix]) -> FloatArray:
    """How often each node was returned."""
    counts = np.zeros(len(tree.nodes))
    for ids, count in Counter(answers).items():
        counts[tree.index[ids]] = count
    return counts


def drawn(tree: AnswerTree, law: FloatArray, count: int, seed: int) -> list[Prefix]:
    """Exact draws from an enumerated law."""
    picked = np.random.default_rng(seed).choice(len(tree.nodes), size=count, p=law / law.sum())
    return [tree.nodes[i] for i in picked]


# --- the server ---------------------------------------------------------------------------------------


async def generate(server: Server, bodies: Sequence[Json]) -> list[Json]:
    """The server's answers, in the order of the requests."""
    slots = asyncio.Semaphore(AT_ONCE)
    limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
    async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits) as client:

        async def one(body: Json) -> Json:
            async with slots:
                response = await client.post("/generate", json=body)
            assert response.status_code == httpx.codes.OK, response.text
            answer: Json = response.json()
            return answer

        return await asyncio.gather(*[one(body) for body in bodies])


def check_answer(tree: AnswerTree, case: Case, answer: Json, law: Literal["power", "approximate"]) -> None:
    """What one response says of itself is true."""
    power, ids = answer["meta_info"]["power"], tuple(answer["output_ids"])
    assert (power["sampler"], power["law"], power["fallback_reason"]) == ("power", law, None)
    assert power["stopped_by"] == "completed"
    assert power["steps"] in case.steps
    assert "not_a_number" not in power
    assert tree.in_space(HORIZON)[tree.index[ids]], f"{ids} is not an answer"
    log_p = tree.log_p(ids)
    assert power["log_p"] == pytest.approx(log_p, abs=1e-3)
    assert power["log_target"] == pytest.approx(case.config.alpha * log_p, abs=1e-3 * case.config.alpha)
    assert answer["text"] == "".join(LETTERS[token - 1] for token in ids if token != EOS)
    assert answer["meta_info"]["finish_reason"]["type"] == ("stop" if ids[-1] == EOS else "length")


def check_early_rejection(case: Case, answers: Sequence[Json]) -> None:
    """Every proposal that was stopped would have been rejected by its full ratio."""
    reports = [answer["meta_info"]["power"] for answer in answers]
    shadows = [report["shadow"] for report in reports if "shadow" in report]
    resumed = sum(shadow["resumed"] for shadow in shadows)
    assert resumed == sum(report["early_rejected"] for report in reports)
    assert (resumed > 0) == case.config.rejects_early
    assert sum(shadow["violations"] for shadow in shadows) == 0


@pytest.mark.server
@pytest.mark.parametrize("case", SERVED)
async def test_answers_follow_the_power_law(law_server: Server, tree: AnswerTree, case: Case) -> None:
    target = tree.target(case.config)
    drafts = drawn(tree, target, case.answers, seed=case.seed) if case.drafted else None
    answers = await generate(law_server, case.bodies(drafts))
    for answer in answers:
        check_answer(tree, case, answer, "approximate" if case.config.law.truncated else "power")
    check_early_rejection(case, answers)
    p = g_test(counted(tree, [tuple(answer["output_ids"]) for answer in answers]), target)
    print("p", p)
    assert p > KEPT


@pytest.mark.server
async def test_control_low_temperature_is_another_law(law_server: Server, tree: AnswerTree) -> None:
    """Token-level temperature 1/alpha, by plain requests to the same server."""
    config = parse_power({"alpha": ENTROPY.config.alpha}).mh_config(HORIZON)
    sampling = {"max_new_tokens": HORIZON, "temperature": 1 / config.alpha}
    answers = await generate(law_server, [{"text": PROMPT, "sampling_params": sampling}] * ENTROPY.answers)
    assert not any("power" in answer["meta_info"] for answer in answers)
    counts = counted(tree, [tuple(answer["output_ids"]) for answer in answers])
    target, own = tree.target(config), tree.low_temperature(config)
    print(f"TV {total_variation(own, target):.3f}, p {g_test(counts, target):.1e}")
    print(f"p of its own law {g_test(counts, own):.3f}")
    assert total_variation(own, target) > 0.1
    assert g_test(counts, target) < REJECTED
    assert g_test(counts, own) > REJECTED


POLICIES: list[Json] = [
    {"sampler": "edt", "theta": 0.3},
    {"sampler": "top_n_sigma", "n": 1.5},
    {"sampler": "typical", "mass": 0.7},
]


@pytest.mark.server
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: str(policy["sampler"]))
async def test_policy_proposals_are_weighed_by_the_law_they_were_drawn_from(
    law_server: Server, tree: AnswerTree, policy: Json
) -> None:
    """Every proposal of every chain, from known drafts: alpha log p - log q summed over its suffix.

    That such chains then leave the target invariant is shown in plugin/tests/algorithms/test_law_kernel.py.
    """
    power = {"alpha": 1.4, "proposal_temperature": 0.85, "block_size": HORIZON, "steps": 12}
    case = Case(seed=500_000, power={**power, "proposal_policy": policy, "return_trace": True}, answers=40)
    config = case.config
    drafts = drawn(tree, tree.target(config), case.answers, seed=case.seed)
    answers = await generate(law_server, case.bodies(drafts))
    for draft, answer in zip(drafts, answers, strict=True):
        state = draft
        for step in answer["meta_info"]["power"]["trace"]:
            proposed = (*state[: step["cut"]], *step["proposal_ids"])
            suffix = tree.model.score(proposed, config.law).after(step["cut"])
            weight = float((config.alpha * suffix.log_p - suffix.log_q).sum())
            assert step["log_w_proposal"] == pytest.approx(weight, abs=1e-3)
            state = proposed if step["accepted"] else state
        assert tuple(answer["output_ids"]) == state


def test_truncated_answers_are_not_the_whole_power_law(tree: AnswerTree) -> None:
    """The truncated case's sample size tells p^alpha on the reachable answers from p^alpha."""
    reachable, whole = tree.target(TOP_K.config), tree.target(parse_power(TOP_K.power).mh_config(HORIZON))
    counts = counted(tree, drawn(tree, reachable, TOP_K.answers, seed=1))
    assert g_test(counts, whole) < REJECTED


# --- enumerated: the setting is sharp, and mistakes are caught ----------------------------------------


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_setting_can_tell_laws_apart(tree: AnswerTree, case: Case) -> None:
    config, target = case.config, tree.target(case.config)
    distance = total_variation(tree.answers(config, target if case.drafted else None), target)
    print("TV after N steps", distance)
    assert distance < (1e-12 if case.drafted else CONVERGED)
    assert config.steps >= 20 if case.drafted else config.stages == 2
    early = float(target[tree.finished & (tree.length < HORIZON)].sum())
    cells = int((target * case.answers >= LARGE).sum())
    print("P(stop early)", early)
    print("cells", cells)
    if not config.law.truncated:
        assert 0.2 < early < 0.8
        assert cells >= 50


@dataclass(frozen=True)
class Control:
    """A wrong chain, at the sample size of the case that must catch it."""

    case: Case
    mistake: Mistake = "none"
    changes: Json = field(default_factory=dict)


CONTROLS = {
    "no cut ratio": Control(UNIFORM, "no cut ratio"),
    "paper's schedule": Control(UNIFORM, changes={"schedule": "paper"}),
    "drafts, no cut ratio": Control(DRAFTED, "no cut ratio"),
    "drafts, common length": Control(DRAFTED, "common length"),
    "drafts, capped at the current length": Control(DRAFTED, "capped"),
}


@pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS)
def test_control_wrong_chain(tree: AnswerTree, control: Control) -> None:
    """As many draws from the enumerated law of the wrong chain's answers do not pass."""
    case, target = control.case, tree.target(control.case.config)
    wrong = parse_power({**case.power, **control.changes}).mh_config(HORIZON)
    law = tree.answers(wrong, target if case.drafted else None, control.mistake)
    print("TV", total_variation(law, target))
    p = g_test(counted(tree, drawn(tree, law, case.answers, seed=7)), target)
    print("p", p)
    assert total_variation(law, target) > 0.08
    assert p < REJECTED


@pytest.mark.parametrize("case", [UNIFORM, DRAFTED], ids=["uniform", "drafted"])
def test_the_right_chain_passes_where_wrong_ones_do_not(tree: AnswerTree, case: Case) -> None:
    target = tree.target(case.config)
    law = tree.answers(case.config, target if case.drafted else None)
    assert g_test(counted(tree, drawn(tree, law, case.answers, seed=7)), target) > KEPT
