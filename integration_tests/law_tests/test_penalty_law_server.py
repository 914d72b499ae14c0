"""Answers with penalties, through the real server: draws of the power of the penalised law.

The base law of a request with penalties is the model's, its logits changed at every row by the tokens that
the answer has in front of it (`algorithms.penalties`). It is enumerated from the saved weights. The law is
tested by looks, a rule fixed beforehand: of at most LOOKS samples with fresh seeds each, one has to pass a
G-test (cells with expectation below 5 pooled) at LEVEL. A right sampler fails with probability
LEVEL^LOOKS = 1e-5 per case. Laws of known mistakes, enumerated, fail every look at the same sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sglang_power.algorithms.penalties import Penalties
from sglang_power.engines.tabular import Prefix, TabularModel
from sglang_power.policies.base import softmax
from sglang_power.request import parse_power
from sglang_power.types import FloatArray

from integration_tests.helpers.goodness_of_fit import g_test
from integration_tests.helpers.looks import ANSWERS, LEVEL, LOOKS, passes_a_look
from integration_tests.law_model import (
    EOS,
    HORIZON,
    LETTERS,
    PROMPT,
    AnswerTree,
    logits_behind,
    total_variation,
)
from integration_tests.server import Server
from integration_tests.tests.test_law_server import Json, counted, drawn, generate

PENALTIES = Penalties(frequency=1.2, presence=0.6, repetition=1.6)

SEED = 1_300_000
BLOCK = 2

CASES: dict[str, Json] = {
    "power": {"sampler": "power", "alpha": 1.8, "block_size": BLOCK, "steps": 12},
    "power, entropy cuts, ahead": {
        "sampler": "power",
        "alpha": 1.8,
        "proposal_temperature": 0.8,
        "block_size": BLOCK,
        "steps": 10,
        "cut": "entropy",
        "prefetch": 4,
    },
    "perfect": {"sampler": "perfect", "alpha": 1.8},
    "smc, 8 runs": {"sampler": "smc", "alpha": 1.8, "particles": 8, "runs": 8, "block_size": BLOCK},
}

Logits = dict[Prefix, FloatArray]
Answer = Callable[[Prefix], Prefix]


@pytest.fixture(scope="module")
def logits(law_model: Path) -> Logits:
    """The model's, behind every prefix."""
    return logits_behind(law_model, PROMPT, HORIZON)


def penalised(logits: Logits, answer: Answer, scale: float = 1.0) -> AnswerTree:
    """Every answer under the penalties.

    Args:
        logits: the model's.
        answer: which tokens count in front of a row.
        scale: what the logits are multiplied by before the penalties, and divided by behind them.
    """

    def row(prefix: Prefix) -> FloatArray:
        return softmax(PENALTIES.act(scale * logits[prefix], answer(prefix)) / scale)

    return AnswerTree(TabularModel(row, horizon=HORIZON, eos=EOS))


@pytest.fixture(scope="module")
def tree(logits: Logits) -> AnswerTree:
    """Every answer under the base law as designed."""
    return penalised(logits, lambda prefix: prefix)


def target_of(tree: AnswerTree, alpha: float) -> FloatArray:
    return tree.target(parse_power({"alpha": alpha}).mh_config(HORIZON))


def body(seed: int, custom: Json) -> Json:
    """One request of /generate."""
    sampling: dict[str, Any] = {"max_new_tokens": HORIZON, **PENALTIES.flat()}
    return {"text": PROMPT, "sampling_params": {**sampling, "custom_params": {**custom, "seed": seed}}}


def check(tree: AnswerTree, answers: Sequence[Json]) -> None:
    """Every answer's log p is that of the penalised law."""
    for answer in answers:
        ids, power = tuple(answer["output_ids"]), answer["meta_info"]["power"]
        assert power["law"] in ("power", "perfect")
        if "log_p" in power:
            assert power["log_p"] == pytest.approx(tree.log_p(ids), abs=1e-3)


@pytest.mark.server
@pytest.mark.parametrize("custom", CASES.values(), ids=CASES)
async def test_answers_follow_the_power_of_the_penalised_law(
    law_server: Server, tree: AnswerTree, custom: Json
) -> None:
    await passes_a_look(
        law_server,
        tree,
        target_of(tree, custom["alpha"]),
        body=lambda seed: body(seed, custom),
        check=lambda answers: check(tree, answers),
        first_seed=SEED,
    )


@pytest.mark.server
async def test_vote_draws_from_the_penalised_law(law_server: Server, tree: AnswerTree) -> None:
    """The plain draws among which a sampler chooses: at temperature 1 they are of the base law itself."""
    custom = {"sampler": "vote", "samples": 3, "answer": "text"}
    target = target_of(tree, 1.0)
    seeds = range(SEED, SEED + ANSWERS // 3)
    answers = await generate(law_server, [body(seed, custom) for seed in seeds])
    paths = [path for answer in answers for path in answer["meta_info"]["power"]["paths"]]
    assert g_test(counted(tree, [ids_of(path) for path in paths]), target) > LEVEL**LOOKS


def ids_of(path: Json) -> Prefix:
    """The ids of a path, of which a report has the text: a token per letter, and a stop without one."""
    letters = tuple(1 + LETTERS.index(letter) for letter in path["text"])
    return letters if path["tokens"] == len(letters) else (*letters, EOS)


ALPHA = 1.8


def restarted(prefix: Prefix) -> Prefix:
    """What a count that begins anew at every block has seen."""
    return prefix[len(prefix) - len(prefix) % BLOCK :]


def with_prompt(prefix: Prefix) -> Prefix:
    """The prompt counted as well."""
    return (*(1 + LETTERS.index(letter) for letter in PROMPT), *prefix)


MISTAKES: dict[str, tuple[Answer, float]] = {
    "counts from the cut": (restarted, 1.0),
    "counts a step late": (lambda prefix: prefix[:-1], 1.0),
    "counts the prompt": (with_prompt, 1.0),
    "behind the power": (lambda prefix: prefix, ALPHA),
    "no penalties": (lambda prefix: prefix[:0], 1.0),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_control_another_law_fails_every_look(tree: AnswerTree, logits: Logits, mistake: str) -> None:
    target, law = target_of(tree, ALPHA), target_of(penalised(logits, *MISTAKES[mistake]), ALPHA)
    print("TV", total_variation(law, target))
    for look in range(LOOKS):
        assert g_test(counted(tree, drawn(tree, law, ANSWERS, seed=look)), target) < LEVEL


def test_control_low_temperature_is_another_law(tree: AnswerTree) -> None:
    config = parse_power({"alpha": ALPHA}).mh_config(HORIZON)
    for look in range(LOOKS):
        sample = drawn(tree, tree.low_temperature(config), ANSWERS, seed=look)
        assert g_test(counted(tree, sample), target_of(tree, ALPHA)) < LEVEL


def test_the_right_law_passes_where_others_do_not(tree: AnswerTree) -> None:
    target = target_of(tree, ALPHA)
    samples = [counted(tree, drawn(tree, target, ANSWERS, seed=look)) for look in range(LOOKS)]
    assert any(g_test(sample, target) > LEVEL for sample in samples)
    assert np.isclose(target.sum(), 1.0)
