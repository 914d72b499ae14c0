"""Perfect draws through the real server: p^alpha on Y_L exactly, their cost, and what is refused.

The law is tested by looks, a rule fixed beforehand: of at most LOOKS samples with fresh seeds each, one has
to pass a G-test (cells with expectation below 5 pooled) at LEVEL. A right sampler fails with probability
LEVEL^LOOKS = 1e-5. Laws of known mistakes, enumerated, fail every look at the same sizes. Figures are
printed; pytest -rP shows them. The server checks early ends in shadow mode (law.yaml): lost trials are
generated to their end.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from sglang_power.request import parse_power
from sglang_power.types import FloatArray, ProposalLaw

from integration_tests.helpers.clients import MESSAGES, client, post, reports, scheduled
from integration_tests.helpers.goodness_of_fit import g_test
from integration_tests.law_model import HORIZON, PROMPT, AnswerTree, tabular_model, total_variation
from integration_tests.prose import lexicon
from integration_tests.server import Server
from integration_tests.tests.test_law_server import Json, counted, drawn, generate

ALPHA, ANSWERS, WIDTH = 1.4, 400, 16
LOOKS, LEVEL = 3, 1e-5 ** (1 / 3)
SEED = 700_000


@pytest.fixture(scope="module")
def tree(law_model: Path) -> AnswerTree:
    """Every answer, with its probability."""
    return AnswerTree(tabular_model(law_model, PROMPT, HORIZON))


@pytest.fixture(scope="module")
def target(tree: AnswerTree) -> FloatArray:
    """p^alpha."""
    return tree.target(parse_power({"alpha": ALPHA}).mh_config(HORIZON))


def body(seed: int, tokens: int = HORIZON, **custom: Any) -> Json:
    """One request of /generate."""
    asked = {"sampler": "perfect", "alpha": ALPHA, "seed": seed, **custom}
    return {"text": PROMPT, "sampling_params": {"max_new_tokens": tokens, "custom_params": asked}}


# --- the law --------------------------------------------------------------------------------------------


def check_reports(answers: Sequence[Json], normaliser: float) -> None:
    """What responses say of themselves is true."""
    told = [answer["meta_info"]["power"] for answer in answers]
    assert {(one["sampler"], one["law"], one["stopped_by"]) for one in told} == {
        ("perfect", "perfect", "completed")
    }
    trials = [one["trials"] for one in told]
    assert trials == [one["accepted_trial"] + 1 for one in told]
    print(f"trials {np.mean(trials):.2f}, expected {1 / normaliser:.2f}")
    spread = (1.0 - normaliser) ** 0.5 / normaliser
    assert abs(np.mean(trials) - 1.0 / normaliser) < 5.0 * spread / len(trials) ** 0.5
    shadows = [one["shadow"] for one in told if "shadow" in one]
    assert sum(shadow["resumed"] for shadow in shadows) > 0
    assert sum(shadow["violations"] for shadow in shadows) == 0
    for answer, one in zip(answers, told, strict=True):
        assert one["log_target"] == pytest.approx(ALPHA * one["log_p"], abs=1e-6)
        assert one["decoded_tokens"] - one["wasted_tokens"] >= len(answer["output_ids"])
        assert one["children"] >= one["trials"]


@pytest.mark.server
async def test_answers_are_exact_draws(law_server: Server, tree: AnswerTree, target: FloatArray) -> None:
    normaliser = sum(np.exp(ALPHA * tree.log_p(ids)) for ids in tree.model.sequences())
    for look in range(LOOKS):
        seeds = range(SEED + look * ANSWERS, SEED + (look + 1) * ANSWERS)
        answers = await generate(law_server, [body(seed) for seed in seeds])
        check_reports(answers, normaliser)
        p = g_test(counted(tree, [tuple(answer["output_ids"]) for answer in answers]), target)
        print("p", p)
        if p > LEVEL:
            return
    pytest.fail("no look passed")


@pytest.mark.server
async def test_a_seed_repeats_its_answer_at_every_width(law_server: Server) -> None:
    each = [
        await generate(law_server, [body(seed, width=width) for seed in range(20)]) for width in (1, 5, 16)
    ]
    same = [len({tuple(answers[i]["output_ids"]) for answers in each}) == 1 for i in range(20)]
    assert sum(same) >= 18, "near ties of float32 apart, batches change nothing"


def race(tree: AnswerTree, target: FloatArray) -> FloatArray:
    """The law of a wrong sampler: of WIDTH trials the accepted one that ends first."""
    normaliser = sum(np.exp(ALPHA * tree.log_p(ids)) for ids in tree.model.sequences())
    law, shorter = np.zeros_like(target), 0.0
    for length in range(1, HORIZON + 1):
        cells = tree.length == length
        mass = float(target[cells].sum())
        wins = (1.0 - normaliser * shorter) ** WIDTH - (1.0 - normaliser * (shorter + mass)) ** WIDTH
        law[cells] = wins * target[cells] / mass
        shorter += mass
    return np.asarray(law / law.sum())


def proposal(tree: AnswerTree, target: FloatArray) -> FloatArray:
    """The law of a wrong sampler: the first trial, whatever it weighs."""
    law = np.zeros_like(target)
    for ids in tree.model.sequences():
        law[tree.index[ids]] = np.exp(tree.model.score(ids, ProposalLaw(ALPHA)).log_q.sum())
    return law


@pytest.mark.parametrize("mistake", [race, proposal], ids=["first to end", "every trial accepted"])
def test_control_wrong_laws_fail_every_look(tree: AnswerTree, target: FloatArray, mistake: Any) -> None:
    law = mistake(tree, target)
    print("TV", total_variation(law, target))
    for look in range(LOOKS):
        p = g_test(counted(tree, drawn(tree, law, ANSWERS, seed=look)), target)
        print("p", p)
        assert p < LEVEL


def test_the_right_law_passes_a_look(tree: AnswerTree, target: FloatArray) -> None:
    assert g_test(counted(tree, drawn(tree, target, ANSWERS, seed=7)), target) > LEVEL


# --- cost -----------------------------------------------------------------------------------------------


QUESTIONS = {
    "colours": ("What colour is the {}?", 6),
    "verdicts": ("Is this true? The {} is red. Answer yes or no.", 2),
}
"""Families with the usual length of an answer. By enumeration 1/Z is 1.06 and 8.0 at alpha 4."""


@pytest.mark.server
@pytest.mark.parametrize("family", QUESTIONS)
def test_short_answers_are_hardly_deeper_than_they_are_long(prose_server: Server, family: str) -> None:
    """Steps per returned token, the prompt's launch and the trials' apart; waste is in the tokens only."""
    question, usual = QUESTIONS[family]
    create: Any = client(prose_server).chat.completions.create
    told: list[Json] = []
    tokens = 0
    for number, thing in enumerate(lexicon.THINGS[:20]):
        chat = create(
            model="prose",
            messages=[{"role": "user", "content": question.format(thing.english)}],
            max_tokens=8,
            extra_body={"custom_params": {"sampler": "perfect", "seed": number}},
        )
        told += reports(chat)
        tokens += chat.usage.completion_tokens
    depth, trials = (sum(one[name] for one in told) for name in ("depth", "trials"))
    decoded = sum(one["decoded_tokens"] for one in told)
    print(f"{trials} trials; a returned token: depth {depth / tokens:.2f}, decoded {decoded / tokens:.1f}")
    assert {one["law"] for one in told} == {"perfect"}
    assert tokens <= 20 * (usual + 1)
    assert depth - 2 * len(told) <= 1.5 * tokens
    if family == "colours":
        assert depth <= 1.5 * tokens, "with the launches; a verdict of two tokens has as many of them"


# --- what ends the trials ---------------------------------------------------------------------------------


@pytest.mark.server
def test_used_up_trials_go_on_as_power_unless_strict(law_server: Server) -> None:
    hopeless: dict[str, Any] = {"alpha": 8.0, "max_trials": 2}
    answer = post(law_server, "/generate", body(1, **hopeless)).json()
    power = answer["meta_info"]["power"]
    assert (power["sampler"], power["law"], power["accepted_trial"]) == ("perfect", "power", None)
    assert power["fallback_reason"] == "none of 2 trials was accepted"
    refused = post(law_server, "/generate", body(1, strict=True, **hopeless))
    assert refused.status_code == httpx.codes.BAD_REQUEST
    assert "max_trials=2: none of 2 trials was accepted, and the request is strict" in refused.text


@pytest.mark.server
def test_trials_first_then_a_chain(law_server: Server) -> None:
    """method="auto" of power."""
    ways = set()
    for seed in range(6):
        for alpha in (1.2, 8.0):
            custom: dict[str, Any] = {"sampler": "power", "method": "auto", "alpha": alpha, "steps": 2}
            power = post(law_server, "/generate", body(seed, **custom)).json()["meta_info"]["power"]
            assert power["sampler"] == "power"
            assert (power["law"] == "perfect") == (power["accepted_trial"] is not None)
            assert power["fallback_reason"] is None
            ways.add(power["law"])
    assert ways == {"perfect", "power"}


BAD: list[tuple[Json, Json, str]] = [
    ({"width": 65}, {}, "width=65: above this server's limit of 64"),
    ({"sampler": "vote", "base": {"sampler": "perfect", "width": 65}}, {}, "base.width=65: "),
    ({}, {"top_p": 0.9}, "top_p=0.9: a truncated proposal misses answers"),
    ({"top_k": 4}, {}, "top_k=4: "),
    ({"steps": 4}, {}, "steps=4: unknown parameter"),
    ({}, {"temperature": 0.5}, "temperature=0.5: "),
    ({"max_total_tokens": 3}, {}, "max_total_tokens=3: "),
    ({"reward": "nobody"}, {}, "reward='nobody': "),
    ({"sampler": "power", "method": "auto", "lookback_blocks": 1}, {}, "lookback_blocks=1: "),
    ({"sampler": "power", "method": "auto", "reward": "nobody"}, {}, "reward='nobody': "),
]


@pytest.mark.server
@pytest.mark.parametrize(("custom", "sampling", "message"), BAD, ids=[message for *_, message in BAD])
def test_what_no_exact_draw_can_serve_is_refused_before_any_token(
    law_server: Server, custom: Json, sampling: Json, message: str
) -> None:
    before = scheduled(law_server)
    values = body(1, **custom)
    if custom.get("sampler") == "vote":
        del values["sampling_params"]["custom_params"]["alpha"]
    values["sampling_params"] |= sampling
    for stream in (False, True):
        response = post(law_server, "/generate", {**values, "stream": stream})
        assert response.status_code == httpx.codes.BAD_REQUEST
        assert message in response.text
    assert scheduled(law_server) == before


@pytest.mark.server
@pytest.mark.parametrize("custom", [{"sampler": "perfect"}, {"sampler": "power", "method": "auto"}], ids=str)
def test_a_reward_without_a_declared_bound_is_refused(pivot_server: Server, custom: Json) -> None:
    asked = {"model": "pivot", "messages": MESSAGES, "custom_params": {**custom, "reward": "gone"}}
    response = post(pivot_server, "/v1/chat/completions", asked)
    assert response.status_code == httpx.codes.BAD_REQUEST
    assert "declares no upper_bound" in response.text
