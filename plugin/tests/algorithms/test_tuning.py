"""Thresholds from measured rows: what they promise, and the section that they become. Error rate 0.

Controls: one step lower a threshold breaks its promise.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from sglang_power import tuning
from sglang_power.algorithms.triggers import Signals, Trigger, TriggerMonitor, Watch, signals_along
from sglang_power.policies.entropix import Entropix
from sglang_power.request import BranchRequest
from sglang_power.server.config import load_config

STEP = 10.0**-tuning.DECIMALS


def answers(count: int = 40, length: int = 50, seed: int = 0) -> list[list[Signals]]:
    """Rows of which a few are uncertain, as ROW_FIELDS that a model might give."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        records = []
        for _ in range(length):
            top = rng.uniform(0.3, 0.6)
            second = top * rng.uniform(0.0, 0.95)
            entropy, varentropy = rng.gamma(0.6, 1.5), rng.gamma(0.8, 2.0)
            log_p, gap = math.log(top), top - second
            records.append([log_p, log_p, 0.0, entropy, varentropy, gap, gap])
        found.append(signals_along(records))
    return found


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("name", ["entropy", "varentropy", "ratio", "jump"])
def test_a_trigger_fires_at_its_rate_and_not_below_its_threshold(name: str, rate: float) -> None:
    rows = answers()
    trigger = tuning.trigger_at(name, rows, rate)
    assert trigger is not None
    share = tuning.share_of(trigger, rows)
    assert rate - 1 / 2000 <= share <= rate
    lower = Trigger(name, (trigger.thresholds[0] - 2 * STEP,))
    assert tuning.share_of(lower, rows) > share or trigger.thresholds[0] == 0.0


def test_the_share_of_the_quantile_trigger_is_measured_too() -> None:
    """It opens only when a row above the quantile is due: late in short answers, so it fires less often."""
    rows = answers(length=30)
    trigger = tuning.trigger_at("quantile", rows, 0.05)
    assert trigger is not None
    share = tuning.share_of(trigger, rows)
    assert 0.03 < share <= 0.05
    assert tuning.share_of(Trigger("quantile", (trigger.thresholds[0] - 0.01,)), rows) > 0.05
    assert tuning.share_of(Trigger("quantile", (0.95,)), rows) < share, "control"
    assert tuning.trigger_at("quantile", answers(length=2), 0.05) is None


def test_the_quadrant_has_both_of_its_rates() -> None:
    rows = answers()
    trigger = tuning.trigger_at(tuning.QUADRANT, rows, 0.05)
    assert trigger is not None
    assert tuning.share_of(trigger, rows) == pytest.approx(0.05, abs=1 / 2000)
    high = tuning.share_of(Trigger("entropy", trigger.thresholds[:1]), rows)
    assert high == pytest.approx(0.05, abs=1 / 2000)


def test_values_that_many_rows_share_are_not_exceeded() -> None:
    """At a pivot the same entropy comes again and again: then the rate stays below what was asked for."""
    rows = [[Signals(0.5 if place % 4 else 2.0, 0.0, 0.0, 0.0, 0.0, 0) for place in range(40)]] * 2
    trigger = tuning.trigger_at("entropy", rows, 0.1)
    assert trigger == Trigger("entropy", (2.0,))
    assert tuning.share_of(trigger, rows) == 0.0
    assert tuning.trigger_at("entropy", rows, 0.25) == Trigger("entropy", (0.5,))


def test_a_ratio_that_no_request_may_name_is_left_out() -> None:
    rows = [[Signals(1.0, 1.0, 1.0, 0.0, 0.0, 0)] * 20] * 2
    assert tuning.trigger_at("ratio", rows, 0.05) is None
    assert "ratio" not in {one.trigger.name for one in tuning.tuned(rows, 0.05)}


def test_rows_that_are_not_numbers_fire_nothing() -> None:
    rows = [[Signals(math.nan, math.nan, math.nan, math.nan, 0.0, 0)] * 20] * 2
    for one in tuning.tuned(rows, 0.05):
        assert one.share == 0.0


def test_thresholds_hold_on_other_answers_of_the_same_kind_and_not_on_another_kind() -> None:
    """By halves: 1,000 rows each at 5% have a standard deviation of 0.7%; 10 of them do not happen."""
    for one in tuning.tuned(answers(), 0.05):
        assert one.held_out == pytest.approx(0.05, abs=0.07)
    calm = [[row._replace(entropy=row.entropy / 10) for row in answer] for answer in answers(20)]
    mixed = [answer for pair in zip(answers(20, seed=1), calm, strict=True) for answer in pair]
    (entropy,) = (one for one in tuning.tuned(mixed, 0.05) if one.trigger.name == "entropy")
    assert entropy.held_out > 0.2, "half of the answers has ten times the entropy of the other"


def test_signals_along_a_path_are_those_that_triggers_compare() -> None:
    rng = np.random.default_rng(3)
    records = np.abs(rng.normal(size=(30, 7)))
    records[:, 0] = -records[:, 0]
    seen = signals_along(records.tolist())
    for name, threshold in (("entropy", 0.8), ("jump", 0.5), ("quantile", 0.7), ("ratio", 0.3)):
        trigger = Trigger(name, (threshold,))
        monitor = TriggerMonitor(Watch((trigger,)))
        fired = [monitor.observe(place, row) is not None for place, row in enumerate(records.tolist())]
        assert fired == [trigger.fires(row) for row in seen], name
        assert 0 < sum(fired) < len(fired), name


@pytest.mark.parametrize("model", ["m", "org/Model-1.7B", "odd: name #1", "*"])
def test_the_section_is_a_configuration_that_requests_to_that_model_get(model: str, tmp_path: Path) -> None:
    branch, drawn = tuning.tuned(answers(), 0.05), tuning.tuned(answers(seed=5), 0.05)
    text = tuning.section(model, branch, drawn, ["how it was measured"])
    path = tmp_path / "tuned.yaml"
    path.write_text(text)
    config = load_config(path)
    assert text.startswith("# how it was measured\n# branch entropy fires at 5.0% of the measured rows")
    for one in branch:
        request = config.resolve({"sampler": "branch", "trigger": one.trigger.name}, model)
        assert isinstance(request, BranchRequest)
        assert request.triggers == (one.trigger,)
    asked = config.resolve({"sampler": "entropix"}, model)
    (quadrant,) = (one.trigger for one in drawn if one.trigger.name == tuning.QUADRANT)
    assert isinstance(asked, Entropix)
    assert (asked.entropy_threshold, asked.varentropy_threshold) == quadrant.thresholds
