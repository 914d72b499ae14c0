"""The laws of `power_choices` and of select(by="power"), by enumeration and G-tests; weights by hand.

Each G-test keeps its level of 1e-3; a control is rejected below 1e-6 with as many draws. Fixed seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from exact import g_test
from sglang.lang.ir import SglSamplingParams
from sglang_power.answers import power_weights
from sglang_power.frontend import power_choices
from sglang_power.frontend.laws import DrawnSegment, draw, endings_of, exponent_of, log_density, normaliser
from sglang_power.rng import Purpose

DRAWS = 4000
ALPHA = 2.0

CHOICES = ["a", "bb", "ccc"]
TOKENS = [[-1.0], [-0.5, -0.7], [-0.2, -0.4, -0.9]]
"""log p of the choices' tokens: the longest is the least likely, but not per token."""


def choose(alpha: float, seed: int, tokens: Sequence[Sequence[float]] = TOKENS) -> str:
    decision: Any = power_choices(alpha, seed)(
        choices=CHOICES,
        normalized_prompt_logprobs=[sum(one) / len(one) for one in tokens],
        input_token_logprobs=[[[value, 0, None] for value in one] for one in tokens],
        output_token_logprobs=[[] for _ in tokens],
    )
    return str(decision.decision)


def law(alpha: float, log_p: Sequence[float]) -> dict[str, float]:
    weights = [math.exp(alpha * value) for value in log_p]
    return {choice: w / sum(weights) for choice, w in zip(CHOICES, weights, strict=True)}


@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
def test_choices_follow_the_power_of_their_whole_probability(alpha: float) -> None:
    drawn = [choose(alpha, seed) for seed in range(DRAWS)]
    assert g_test(drawn, law(alpha, [sum(one) for one in TOKENS])) > 1e-3
    if alpha:
        means = [sum(one) / len(one) for one in TOKENS]
        assert g_test(drawn, law(alpha, means)) < 1e-6, "control: SGLang's normalised log probabilities"
        assert g_test(drawn, law(alpha + 2.0, [sum(one) for one in TOKENS])) < 1e-6, "control: another power"


def test_one_seed_draws_independently_where_log_probabilities_differ() -> None:
    rng = np.random.default_rng(1)
    joint = []
    for _ in range(DRAWS):
        tokens = [[value + rng.normal() * 1e-9] for value in (-1.0, -1.0, -1.0)]
        joint.append(choose(1.0, 7, tokens))
    assert g_test(joint, law(1.0, [-1.0] * 3)) > 1e-3
    assert {choose(1.0, 7) for _ in range(5)} == {choose(1.0, 7)}


MODEL = {"x": 0.5, "y": 0.3, "z": 0.2}
"""p of three answers."""


def selected_law(branches: int, weights: Any) -> dict[str, float]:
    """The exact law of the selected answer: all tuples of draws from p, one drawn by weight."""
    names, p = list(MODEL), np.array(list(MODEL.values()))
    total = dict.fromkeys(names, 0.0)
    for index in np.ndindex(*[len(names)] * branches):
        ids = list(index)
        shares = np.exp(weights(np.log(p[ids])))
        for i, share in zip(ids, shares / shares.sum(), strict=True):
            total[names[i]] += float(p[ids].prod() * share)
    return total


def test_selection_by_power_has_the_enumerated_law_and_nears_the_power() -> None:
    def weights(log_p: Any) -> Any:
        branches = [[DrawnSegment((1,), value, 1.0)] for value in log_p]
        return power_weights(ALPHA, log_p, [log_density(one, ALPHA) for one in branches])

    exact = selected_law(4, weights)
    rng, names = np.random.default_rng(3), list(MODEL)
    drawn = []
    for seed in range(DRAWS):
        ids = rng.choice(3, size=4, p=list(MODEL.values()))
        log_p = np.log(np.array(list(MODEL.values())))[ids]
        drawn.append(names[ids[draw(weights(log_p), seed, Purpose.CHOICE)]])
    assert g_test(drawn, exact) > 1e-3
    wrong = selected_law(4, lambda log_p: ALPHA * log_p)
    assert g_test(drawn, wrong) < 1e-6, "control: p^alpha instead of p^(alpha-1), which targets p^(alpha+1)"
    target = {name: p**ALPHA / sum(q**ALPHA for q in MODEL.values()) for name, p in MODEL.items()}
    gaps = [sum(abs(selected_law(n, weights)[name] - target[name]) for name in MODEL) for n in (1, 2, 4, 6)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.1 < gaps[0]


def test_densities_of_branches() -> None:
    plain, cold, powered = (DrawnSegment((1,), -2.0, exponent) for exponent in (1.0, None, ALPHA))
    later = DrawnSegment((1, 5), -3.0, 1.0)
    assert log_density([plain, later], ALPHA) == -5.0
    assert log_density([powered, later], ALPHA) == -2.0 * ALPHA - 3.0
    assert log_density([plain, cold], ALPHA) is None
    assert log_density([later, powered], ALPHA) is None, "its normaliser hangs on what was drawn before"
    assert log_density([powered], 3.0) is None, "another power"


def test_normalisers_are_equal_only_behind_the_same_tokens_with_the_same_ends() -> None:
    def powered(prefix: int = 1, **settings: Any) -> list[DrawnSegment]:
        return [DrawnSegment((prefix,), -2.0, ALPHA, endings_of(SglSamplingParams(**settings)))]

    first = normaliser(powered(), ALPHA)
    assert first == normaliser(powered(return_logprob=True), ALPHA)
    others = [
        powered(prefix=2),
        powered(max_new_tokens=1),
        powered(stop=";"),
        powered(stop_token_ids=[5]),
        powered(ignore_eos=True),
        [DrawnSegment((1,), -2.0, 1.0)],
    ]
    assert first not in [normaliser(one, ALPHA) for one in others]
    assert normaliser([DrawnSegment((1,), -2.0, 1.0)], 1.0) is None, (
        "p itself is normalised, whatever ends its answers"
    )


NEUTRAL: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "min_new_tokens": 0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
}


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", 0.7), ("top_k", 5), ("regex", "a"), ("min_p", 0.1)]
)
def test_plain_draws_have_a_known_law_only_where_nothing_shapes_them(field: str, value: Any) -> None:
    assert exponent_of(None, NEUTRAL) == 1.0
    assert exponent_of({"sampler": "none"}, NEUTRAL) == 1.0
    assert exponent_of(None, {**NEUTRAL, field: value}) is None


def test_power_draws_have_a_known_law_only_where_they_say_so() -> None:
    report = {"sampler": "power", "law": "power", "params": {"alpha": 4.0}}
    assert exponent_of(report, {}) == 4.0
    assert exponent_of({**report, "law": "approximate"}, {}) is None
    assert exponent_of({**report, "reward": {}}, {}) is None
    assert exponent_of({"sampler": "cot", "law": "selection"}, NEUTRAL) is None
    for shaped in ({"min_new_tokens": 5}, {"regex": "a"}, {"frequency_penalty": 1.0}):
        assert exponent_of(report, {**NEUTRAL, **shaped}) is None, "a power of another law than p"
