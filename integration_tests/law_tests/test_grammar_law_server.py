"""Answers under a grammar, through the real server: exact draws of the masked law's power.

The base law of a request with a grammar is the model's, row by row restricted to the tokens that the grammar
allows and renormalised. It is enumerated from the saved weights and Python's own regular expressions. The law
is tested by looks, a rule fixed beforehand: of at most LOOKS samples with fresh seeds each, one has to pass a
G-test (cells with expectation below 5 pooled) at LEVEL. A right sampler fails with probability
LEVEL^LOOKS = 1e-5 per case. Laws of known mistakes, enumerated, fail every look at the same sizes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sglang_power.engines.tabular import Prefix, TabularModel
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
    tabular_model,
    total_variation,
)
from integration_tests.server import Server
from integration_tests.tests.test_law_server import Json, counted, drawn

PATTERN = "(d[a-d]{2}|[bcd])*"
"""Searched for: every mistake below moves more than a fifth of the law, and the kept prefix decides what may
follow."""

LONGEST = HORIZON + 2
"""Letters of the longest word that an answer may begin: what is open at the horizon needs two more."""

SEED = 900_000

CASES: dict[str, Json] = {
    "power": {"sampler": "power", "alpha": 1.4, "block_size": 3, "steps": 8},
    "power, entropy cuts, ahead": {
        "sampler": "power",
        "alpha": 1.4,
        "proposal_temperature": 0.8,
        "block_size": 3,
        "steps": 4,
        "cut": "entropy",
        "prefetch": 4,
    },
    "perfect": {"sampler": "perfect", "alpha": 1.4},
    "smc, 8 runs": {"sampler": "smc", "alpha": 1.4, "particles": 8, "runs": 8, "block_size": 3},
}


def constrained(model: TabularModel, pattern: str) -> TabularModel:
    """The model under a grammar: a token is allowed where a word of it can still follow."""
    every = ("".join(word) for n in range(LONGEST + 1) for word in itertools.product(LETTERS, repeat=n))
    words = {word for word in every if re.fullmatch(pattern, word)}
    begun = {word[:length] for word in words for length in range(len(word) + 1)}

    def row(prefix: Prefix) -> FloatArray:
        text = "".join(LETTERS[token - 1] for token in prefix)
        allowed = np.array([text in words, *[text + letter in begun for letter in LETTERS]])
        masked = np.where(allowed if allowed.any() else True, model.probs(prefix), 0.0)
        return np.asarray(masked / masked.sum(), dtype=np.float64)

    return TabularModel(row, horizon=HORIZON, eos=EOS)


@pytest.fixture(scope="module")
def free(law_model: Path) -> AnswerTree:
    """Every answer without a grammar."""
    return AnswerTree(tabular_model(law_model, PROMPT, HORIZON))


@pytest.fixture(scope="module")
def tree(free: AnswerTree) -> AnswerTree:
    """Every answer under the grammar."""
    return AnswerTree(constrained(free.model, PATTERN))


def target_of(tree: AnswerTree, custom: Json) -> FloatArray:
    """The power law of a case."""
    return tree.target(parse_power({"alpha": custom["alpha"]}).mh_config(HORIZON))


def body(seed: int, custom: Json) -> Json:
    """One request of /generate."""
    sampling: dict[str, Any] = {"max_new_tokens": HORIZON, "regex": PATTERN}
    return {"text": PROMPT, "sampling_params": {**sampling, "custom_params": {**custom, "seed": seed}}}


def check(tree: AnswerTree, answers: Sequence[Json]) -> None:
    """Every answer is one of the grammar, and its log p is that of the masked law."""
    for answer in answers:
        ids, power = tuple(answer["output_ids"]), answer["meta_info"]["power"]
        if answer["meta_info"]["finish_reason"]["type"] == "stop":
            assert re.fullmatch(PATTERN, answer["text"])
        assert power["law"] in ("power", "perfect")
        if "log_p" in power:
            assert power["log_p"] == pytest.approx(tree.log_p(ids), abs=1e-3)


@pytest.mark.server
@pytest.mark.parametrize("custom", CASES.values(), ids=CASES)
async def test_answers_follow_the_power_of_the_masked_law(
    law_server: Server, tree: AnswerTree, custom: Json
) -> None:
    await passes_a_look(
        law_server,
        tree,
        target_of(tree, custom),
        body=lambda seed: body(seed, custom),
        check=lambda answers: check(tree, answers),
        first_seed=SEED,
    )


@pytest.mark.parametrize("custom", CASES.values(), ids=CASES)
@pytest.mark.parametrize("mistake", ["masked behind the power", "masked once for all", "low temperature"])
def test_control_another_law_fails_every_look(
    tree: AnswerTree, free: AnswerTree, custom: Json, mistake: str
) -> None:
    """Power of the free law, then the grammar; the free law under the grammar; tempered masked rows."""
    target = target_of(tree, custom)
    config = parse_power({"alpha": custom["alpha"]}).mh_config(HORIZON)
    allowed, same = target > 0, np.array([free.index[ids] for ids in tree.nodes])
    laws = {
        "masked behind the power": np.where(allowed, free.target(config)[same], 0.0),
        "masked once for all": np.where(allowed, [np.exp(free.log_p(ids)) for ids in tree.nodes], 0.0),
        "low temperature": tree.low_temperature(config),
    }
    law = laws[mistake] / laws[mistake].sum()
    print("TV", total_variation(law, target))
    for look in range(LOOKS):
        assert g_test(counted(tree, drawn(tree, law, ANSWERS, seed=look)), target) < LEVEL


def test_the_right_law_passes_where_others_do_not(tree: AnswerTree) -> None:
    for custom in CASES.values():
        target = target_of(tree, custom)
        samples = [counted(tree, drawn(tree, target, ANSWERS, seed=look)) for look in range(LOOKS)]
        assert any(g_test(sample, target) > LEVEL for sample in samples)
