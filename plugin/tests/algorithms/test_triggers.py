"""Triggers: rules against the row's probabilities, state that is keyed by position and inherited at forks."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sglang_power.algorithms.cuts import EntropyCut, gains
from sglang_power.algorithms.triggers import (
    DEFAULT_THRESHOLDS,
    RULES,
    THRESHOLDS,
    Trigger,
    TriggerMonitor,
    TriggerState,
    Watch,
    entropy_jump,
)
from sglang_power.types import ROW_FIELDS, FloatArray
from trigger_rows import paths_of_rows, record


def entropy(p: FloatArray) -> float:
    return float(-(p @ np.log(p)))


def varentropy(p: FloatArray) -> float:
    return float(p @ (np.log(p) + entropy(p)) ** 2)


def naive(name: str, thresholds: tuple[float, ...], p: FloatArray, before: list[FloatArray]) -> bool:
    """The trigger straight from its definition."""
    h, v = entropy(p), varentropy(p)
    top = np.sort(p)[::-1]
    if name == "entropy":
        return h > thresholds[0]
    if name == "varentropy":
        return v > thresholds[0]
    if name == "ratio":
        return bool(top[1] / top[0] > thresholds[0])
    if name == "jump":
        return h - (entropy(before[-1]) if before else 0.0) > thresholds[0]
    if name == "quantile":
        enough = len(before) * (1 - Fraction(str(thresholds[0]))) >= 1
        return enough and float(np.mean([entropy(b) < h for b in before])) >= thresholds[0]
    _, high_h, high_v = name.split("_")
    return (h > thresholds[0]) == (high_h == "high") and (v > thresholds[1]) == (high_v == "high")


def monitor(*triggers: Trigger, **state: Any) -> TriggerMonitor:
    return TriggerMonitor(Watch(triggers, TriggerState(**state)))


thresholds = {
    "entropy": (0.81237,),
    "varentropy": (0.20371,),
    "ratio": (0.61803,),
    "jump": (0.30719,),
    "quantile": (0.75,),
} | {name: (0.81237, 0.20371) for name in RULES if name.startswith("entropix")}
"""No round numbers, which rows of round weights would meet exactly."""


@pytest.mark.parametrize("name", RULES)
@given(path=paths_of_rows, data=st.data())
def test_rules_are_their_definitions(name: str, path: list[FloatArray], data: st.DataObject) -> None:
    watched = monitor(Trigger(name, thresholds[name]))
    for t, p in enumerate(path):
        token = data.draw(st.integers(0, len(p) - 1))
        fired = watched.observe(t, record(p, token)) is not None
        close = [abs(entropy(p) - entropy(b)) < 1e-12 for b in path[:t]]
        if not any(close):  # equal entropies may differ in their last bit
            assert fired == naive(name, thresholds[name], p, path[:t])


@pytest.mark.parametrize("name", RULES)
def test_every_rule_fires_and_does_not(name: str) -> None:
    """On 400 rows of one seed each rule does both, so that the test above can fail."""
    rng = np.random.default_rng(3)
    watched = monitor(Trigger(name, thresholds[name]))
    rows = [rng.dirichlet(np.full(4, concentration)) for concentration in (0.2, 0.6, 3.0, 20.0) * 100]
    fired = [
        watched.observe(t, record(np.maximum(p, 1e-9) / p.clip(1e-9).sum())) is not None
        for t, p in enumerate(rows)
    ]
    assert {True, False} <= set(fired)


def test_every_rule_has_thresholds() -> None:
    assert THRESHOLDS.keys() == RULES.keys()
    for name, values in DEFAULT_THRESHOLDS.items():
        assert len(values) == THRESHOLDS[name]
    assert all(name in DEFAULT_THRESHOLDS or name.startswith("entropix") for name in RULES)


def test_the_first_of_several_triggers_is_named() -> None:
    watched = monitor(Trigger("entropy", (9.0,)), Trigger("ratio", (0.5,)), Trigger("varentropy", (0.0,)))
    fired = watched.observe(0, record(np.array([0.5, 0.3, 0.2])))
    assert fired is not None
    assert fired.name == "ratio"


@given(paths_of_rows, st.data())
def test_rows_that_are_shown_again_change_nothing(path: list[FloatArray], data: st.DataObject) -> None:
    """As after a retraction, or by a prefill chunk: the sampler computes rows again."""
    triggers = (Trigger("jump", (0.2,)), Trigger("quantile", (0.5,)))
    once, again = monitor(*triggers), monitor(*triggers)
    for t, p in enumerate(path):
        expected = once.observe(t, record(p))
        assert again.observe(t, record(p)) == expected
        for _ in range(data.draw(st.integers(0, 2))):
            seen = data.draw(st.integers(0, t))
            assert again.observe(seen, record(path[seen])) is None
    assert once.state == again.state


@given(paths_of_rows, st.integers(0, 30))
def test_a_child_inherits_the_state_of_its_fork(path: list[FloatArray], at: int) -> None:
    triggers = (Trigger("jump", (0.2,)), Trigger("quantile", (0.5,)))
    cut = min(at, len(path))
    rows = np.array([record(p) for p in path]).reshape(-1, len(ROW_FIELDS))
    whole = monitor(*triggers)
    fired = [whole.observe(t, row) for t, row in enumerate(rows.tolist())]
    child = TriggerMonitor(Watch(triggers).behind(rows[:cut]))
    assert [child.observe(t, rows[t].tolist()) for t in range(cut, len(path))] == fired[cut:]


@pytest.mark.parametrize("percent", [1, 10, 30, 50, 60, 65, 70, 75, 80, 85, 90, 95, 98, 99])
def test_a_quantile_fires_from_the_first_row_on_that_has_enough_before_it(percent: int) -> None:
    """n (1 - q) >= 1 in exact arithmetic: five rows are enough for 0.8, although 5 * (1 - 0.8) < 1."""
    trigger = Trigger("quantile", (float(f"{percent / 100:.2f}"),))
    enough = math.ceil(1 / (1 - Fraction(percent, 100)))
    watched = monitor(trigger)
    rising = [[0.0, 0.0, 0.0, 0.001 * t, 0.0, 0.0, 0.0] for t in range(enough + 3)]
    fired = [t for t, row in enumerate(rising) if watched.observe(t, row) is not None]
    assert fired == list(range(enough, enough + 3))


@pytest.mark.parametrize("percent", range(1, 100))
def test_a_rank_that_equals_the_share_reaches_it(percent: int) -> None:
    """Of 100 rows before, `percent` are below."""
    share = float(f"{percent / 100:.2f}")
    history = tuple([0.1] * percent + [0.9] * (100 - percent))
    for above, fires in ((0.5, True), (0.1, False)):
        watched = monitor(Trigger("quantile", (share,)), position=100, history=history)
        assert (watched.observe(100, [0.0, 0.0, 0.0, above, 0.0, 0.0, 0.0]) is not None) == fires


def test_a_child_that_forgets_its_history_is_another_trigger() -> None:
    rng = np.random.default_rng(5)
    rows = [record(rng.dirichlet(np.full(4, 1.0))) for _ in range(40)]
    trigger = Trigger("quantile", (0.75,))
    whole, forgetful = monitor(trigger), monitor(trigger, position=20)
    fired = [whole.observe(t, row) for t, row in enumerate(rows)][20:]
    assert [forgetful.observe(t, rows[t]) for t in range(20, 40)] != fired


def test_rows_before_open_from_are_seen_but_do_not_fire() -> None:
    trigger = Trigger("jump", (0.1,))
    flat, sharp = record(np.full(4, 0.25)), record(np.array([0.97, 0.01, 0.01, 0.01]))
    watched = monitor(trigger, open_from=2)
    assert [watched.observe(t, row) for t, row in enumerate([flat, sharp, flat])] == [None, None, trigger]


def test_rows_that_are_not_numbers_never_fire() -> None:
    watched = monitor(*(Trigger(name, thresholds[name]) for name in RULES))
    assert watched.observe(0, [float("nan")] * len(ROW_FIELDS)) is None


@given(paths_of_rows)
def test_the_entropy_cut_prefers_what_the_jump_trigger_sees(path: list[FloatArray]) -> None:
    entropies = np.array([entropy(p) for p in path])
    jumps = [entropy_jump(h, before) for h, before in zip(entropies, [0.0, *entropies[:-1]], strict=True)]
    expected = np.maximum(jumps, 0.0) ** 2.0
    np.testing.assert_allclose(gains(EntropyCut(2.0, 0.1), entropies), expected)
