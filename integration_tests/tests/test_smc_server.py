"""`smc` through the real server: its law, what it reports, streams, drafts, votes, bad input.

The law model's answers are enumerated, so a null hypothesis is exact where runs start from exact drafts, and
exact up to CONVERGED where they do not: the TV of K runs to their limit, on the joint law of answer and Zhat,
is found from the estimates of many runs on the enumerated model. A test of a law is sequential: up to ROUNDS
samples with fresh seeds, the next one only where the last has p below DOUBTFUL, and a failure where all have.
So a right sampler fails one of the two tests with probability at most 2 * 0.015^3 = 7e-6; the control has p
below 1e-6 in its first sample.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from sglang_power.engines.tabular import Prefix, TabularEngine
from sglang_power.request import SmcRequest
from sglang_power.rng import Key
from sglang_power.samplers.budgets import Budget
from sglang_power.samplers.particles import ParticleRuns
from sglang_power.types import FloatArray

from integration_tests.helpers.clients import (
    MESSAGES,
    PROMPT,
    PROMPT_Q,
    client,
    events,
    post,
    power_of,
    raw_generate,
    reports,
    scheduled,
)
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
    assert power["depth"] <= HORIZON * (2 if case.drafted else 1)
    assert 1 <= ends <= 3


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


# --- answers -------------------------------------------------------------------------------------------

SMALL: Json = {"sampler": "smc", "particles": 4, "block_size": 8, "seed": 3}
LETTER: Json = {"answer": "regex", "answer_regex": r"A(\d)"}
FIELDS = {
    *{"sampler", "params", "seed", "decoded_tokens", "prefilled_tokens", "wasted_tokens", "depth"},
    *{"children", "law", "fallback_reason", "log_p", "log_target", "stopped_by", "weight_version", "version"},
    *{"runs", "particles", "log_z", "log_z_sd", "ess", "resamplings", "accepted", "acceptance_rate"},
}


def ask(server: Server, prompt: str = PROMPT, tokens: int = 48, sampling: Any = None, **smc: Any) -> Any:
    params = {"max_new_tokens": tokens, "custom_params": {**SMALL, **smc}, **(sampling or {})}
    return raw_generate(server, prompt, sampling_params=params)


@pytest.mark.server
def test_what_it_reports(pivot_server: Server) -> None:
    answer = ask(pivot_server, runs=2)
    power = power_of(answer)
    assert power.keys() - {"hint"} == FIELDS
    assert (power["runs"], power["particles"], power["law"]) == (2, 4, "power")
    assert power["params"]["resampling"] == "systematic"
    assert power["params"]["proposal_temperature"] == 0.25
    assert power["log_z_sd"] == pytest.approx(float(np.std(power["log_z"], ddof=1)))
    assert all(1.0 <= ess <= 4.0 + 1e-9 for trace in power["ess"] for ess in trace)
    length = answer["meta_info"]["completion_tokens"]
    assert power["decoded_tokens"] > 4 * length > 2 * power["depth"]
    told = dict.fromkeys(("max_new_tokens", "draft", "neutralised"))
    again = ask(pivot_server, **{**power["params"], **told})
    assert power_of(again)["params"] == power["params"]


@pytest.mark.server
def test_particles_share_what_is_cached(pivot_server: Server) -> None:
    """Children of a later block compute one token each; the first ones the prompt's last."""
    power = power_of(ask(pivot_server, runs=2))
    assert power["prefilled_tokens"] <= power["children"] + len(PROMPT)


@pytest.mark.server
def test_a_stream_shows_what_all_particles_share(pivot_server: Server) -> None:
    """Of one run; of several ones nothing before the end. No text is taken back."""
    for runs in (1, 2):
        custom = {**SMALL, "runs": runs, "ess_threshold": 1.0, "block_size": 4, "particles": 2}
        body = {"text": PROMPT, "stream": True, "sampling_params": {"max_new_tokens": 48}}
        body["sampling_params"] |= {"custom_params": custom}  # type: ignore[operator]
        told = events(pivot_server, "/generate", body)
        texts = [event["text"] for event in told]
        assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
        assert any(texts[:-1]) == (runs == 1)
        assert power_of(told[-1])["runs"] == runs


@pytest.mark.server
def test_openai_clients(pivot_server: Server) -> None:
    chat = client(pivot_server).chat.completions.create(
        model="pivot", messages=MESSAGES, max_tokens=48, n=2, extra_body={"custom_params": {**SMALL}}
    )
    assert [report["sampler"] for report in reports(chat)] == ["smc", "smc"]
    assert chat.choices[0].message.content == ask(pivot_server)["text"]


@pytest.mark.server
def test_a_vote(pivot_server: Server) -> None:
    answer = ask(pivot_server, PROMPT_Q, particles=8, runs=2, result="vote", **LETTER)
    power = power_of(answer)
    assert (power["law"], power["params"]["result"]) == ("approximate", "vote")
    weights = [one["weight"] for one in power["classes"] if one["weight"] is not None]
    assert sum(weights) == pytest.approx(1.0)
    chosen = power["paths"][power["chosen"]["index"]]
    assert chosen["text"] == answer["text"]
    best = max(power["classes"], key=lambda one: one["weight"] or 0.0)
    assert chosen["answer"] == best["representative"]


@pytest.mark.server
def test_the_likeliest_and_a_draft(pivot_server: Server) -> None:
    drawn_answer, likeliest = (ask(pivot_server, result=result) for result in ("sample", "argmax"))
    assert power_of(likeliest)["log_p"] >= power_of(drawn_answer)["log_p"]
    refined = power_of(ask(pivot_server, initial_ids=likeliest["output_ids"], result="argmax"))
    assert refined["log_p"] >= power_of(likeliest)["log_p"] - 1e-3
    assert (refined["params"]["draft"], refined["params"]["resampling"]) == (True, "multinomial")
    text = power_of(ask(pivot_server, initial_text="w7+3=0;"))
    assert text["law"] == "power"


BAD: list[tuple[Json, Json, str]] = [
    ({"particles": 300}, {}, "particles=300: 300 are 300, above this server's limits.max_particles of 256"),
    ({"particles": 65, "runs": 4}, {}, "particles=65: 4 runs of 65 are 260"),
    ({"initial_ids": [1, 2], "resampling": "systematic"}, {}, "resampling='systematic'"),
    ({"answer": "number"}, {}, "answer='number'"),
    ({"max_total_tokens": 4 * 48 - 1}, {}, "max_total_tokens=191: 4 answer(s)"),
    ({}, {"temperature": 0.5}, "temperature=0.5"),
    ({"initial_text": "x" * 60}, {}, "initial_text="),
    ({"steps": 3}, {}, "steps=3"),
]


@pytest.mark.server
@pytest.mark.parametrize(("smc", "sampling", "message"), BAD, ids=str)
def test_bad_input_is_a_400_before_any_token(
    pivot_server: Server, smc: Json, sampling: Json, message: str
) -> None:
    before = scheduled(pivot_server)
    params = {"max_new_tokens": 48, "custom_params": {**SMALL, **smc}, **sampling}
    response = post(pivot_server, "/generate", {"text": PROMPT, "sampling_params": params})
    assert response.status_code == httpx.codes.BAD_REQUEST, response.text
    assert message in response.json()["error"]["message"], response.text
    assert scheduled(pivot_server) == before


@pytest.mark.server
def test_tokens_for_fewer_runs_give_fewer_runs(pivot_server: Server) -> None:
    power = power_of(ask(pivot_server, runs=4, max_total_tokens=2 * 4 * 48))
    assert (power["runs"], power["stopped_by"], power["law"]) == (2, "max_total_tokens", "approximate")


@pytest.mark.server
def test_truncation_of_the_proposal_is_the_clients(pivot_server: Server) -> None:
    power = power_of(ask(pivot_server, sampling={"top_k": 2}, runs=2))
    assert (power["params"]["top_k"], power["law"]) == (2, "approximate")
