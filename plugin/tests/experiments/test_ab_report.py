"""From lines of a log to a report and its text: the parts together, on logs whose answer is known."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
from ab_lines import CONFIG, HOUR, Lines, experiment
from ab_reports import effect, full_report
from sglang_power.experiments.analysis import page, show, wording
from sglang_power.experiments.analysis.report import report
from sglang_power.experiments.analysis.requests import Scope, joined
from sglang_power.experiments.analysis.results import Report
from sglang_power.experiments.analysis.units import population

SHADOWED: dict[str, Any] = {
    "arms": [
        {"name": "plain", "sampler": {"sampler": "none"}, "weight": 5000, "control": "plain"},
        {"name": "power", "sampler": {"preset": "power"}, "weight": 5000},
        {"name": "entropy", "sampler": {"preset": "entropy"}, "weight": 0, "shadow": True},
    ],
    "shadow": {"tokens_per_hour": 1000},
}


def made(log: Path, *, now: float = 100 * HOUR, **changes: Any) -> Report:
    return report(log, Scope(experiment(**changes), CONFIG, 0, now))


def played(directory: Path, rates: dict[str, float], units: int = 400, *, lost: float = 0.0) -> Path:
    """A log of one thumb per unit, at a rate per arm; fixed seed. A share of power's completions is lost."""
    chance, log = random.Random(7), Lines()
    for number in range(units):
        arm = chance.choice(sorted(rates))
        exposure = log.enrol(f"u{number}", arm, float(number))
        if arm == "plain" or chance.random() >= lost:
            log.complete(exposure, arm, number + 2.0, decoded=10 if arm == "plain" else 70)
        log.say(exposure, float(chance.random() < rates[arm]), number + 3.0)
    return log.write(directory)


def test_a_large_improvement_ships(tmp_path: Path) -> None:
    found = made(played(tmp_path, {"plain": 0.2, "power": 0.8}))
    assert (found.verdict.decision, found.verdict.arm) == ("ship", "power")
    assert found.units == 400
    assert found.days == pytest.approx(402 / 86400, abs=1e-5)
    assert sum(found.srm.units.values()) == 400
    assert not found.srm.red
    plain, power = found.arms
    assert plain.means["thumbs"] == pytest.approx(0.2, abs=0.1)
    assert power.means["thumbs"] == pytest.approx(0.8, abs=0.1)
    assert power.tokens_per_request == {"decoded": 70.0, "prefilled": 5.0}
    assert {e.metric for e in found.effects} == {"thumbs", "failed", "tokens"}


def test_requests_without_a_completion_stop_it_and_leave_the_sample_ratio_green(tmp_path: Path) -> None:
    found = made(played(tmp_path, {"plain": 0.5, "power": 0.5}, lost=0.4))
    assert (found.verdict.decision, found.verdict.arm) == ("stop", "power")
    assert "failed" in found.verdict.reason
    assert not found.srm.red
    assert found.arms[1].outcomes["lost"] > 50


def test_nothing_to_see_keeps_running(tmp_path: Path) -> None:
    found = made(tmp_path)
    assert found.verdict.decision == "keep running"
    assert (found.units, found.began, found.until, found.config) == (0, None, None, None)
    assert "VERDICT: keep running" in show.text(found)
    assert wording.NOBODY in show.text(found)


def test_a_file_that_was_edited_is_told_from_one_that_was_not(tmp_path: Path) -> None:
    found = report(played(tmp_path, {"plain": 0.5, "power": 0.5}), Scope(experiment(), "edited", 0, 1e9))
    assert (found.units, found.config, found.excluded.other_configuration) == (0, None, 400)
    assert wording.NOBODY in show.text(found)


SWITCHBACK: dict[str, Any] = {
    "kind": "switchback",
    "unit": None,
    "switchback": {"pool": "a", "window_s": 600.0, "washout_s": 60.0},
    "metrics": {"slow": {"source": "latency", "over_ms": 2000.0}},
    "primary": {"metric": "slow", "min_effect": 0.0},
    "guardrails": [],
    "minimum_run": {"days": 0.0, "units": 40},
}


def test_windows_are_the_units_of_a_switchback(tmp_path: Path) -> None:
    """Power is slow in one request of two, plain never; each window begins with a request in its washout."""
    log, chance = Lines(), random.Random(3)
    for window in range(60):
        arm = chance.choice(["plain", "power"])
        log.enrol(str(window), arm, window * 600.0, washout=True)
        for at in (100.0, 200.0, 300.0, 400.0):
            slow = arm == "power" and at > 250.0
            log.request(str(window), arm, window * 600.0 + at, e2e_s=3.0 if slow else 1.0)
    found = made(log.write(tmp_path), **SWITCHBACK)
    assert (found.units, found.excluded.washout) == (60, 60)
    (effect_,) = found.effects
    assert effect_.interval.method == "randomisation"
    assert effect_.interval.estimate == pytest.approx(0.5)
    assert found.verdict.decision == "stop"
    assert "carry-over from the window before" in show.text(found)


def test_windows_without_traffic_are_known_to_be_missing(tmp_path: Path) -> None:
    log = Lines()
    for window in (3, 4, 7):
        log.request(str(window), "plain", window * 600.0 + 100.0)
    found = joined(log.write(tmp_path), Scope(experiment(**SWITCHBACK), CONFIG, 0, 100 * HOUR))
    assert population(found).observations.follows.tolist() == [False, True, False]


def test_running_requests_are_not_lost_yet(tmp_path: Path) -> None:
    log = Lines()
    log.enrol("u1", "plain", 0.0)
    log.enrol("u2", "plain", HOUR)
    log.request("u3", "power", 3.0, e2e_s=2.0)
    found = made(log.write(tmp_path), now=1.5 * HOUR)
    assert found.arms[0].outcomes == {"lost": 1, "running": 1}
    assert found.arms[1].e2e_s == {"p50": 2.0, "p95": 2.0, "p99": 2.0}
    assert found.excluded.open_windows == 1


def test_a_phase_may_give_an_arm_nobody(tmp_path: Path) -> None:
    ramp = [{"weights": {"plain": 10_000, "power": 0}}, {"weights": {"plain": 5000, "power": 5000}}]
    found = made(played(tmp_path, {"plain": 0.5}), ramp=ramp)
    assert found.verdict.decision == "keep running"
    assert not found.srm.red
    assert found.arms[1].means == {"thumbs": None, "failed": None, "tokens": None}
    assert "one of the arms has no weight in this phase" in show.text(found)


def test_cost_is_estimated_where_a_price_is_declared(tmp_path: Path) -> None:
    log = Lines()
    log.request("u1", "plain", 0.0, decoded=100, prefilled=50)
    log.request("u1", "plain", 1.0, decoded=40, prefilled=50)
    gpu = {"source": "tokens", "gpu_seconds_per_token": {"decoded": 0.01, "prefilled": 0.002}}
    thumbs = {"source": "feedback", "low": 0.0, "high": 1.0, "absent": 0.0}
    found = made(log.write(tmp_path), metrics={"thumbs": thumbs, "gpu": gpu}, guardrails=[])
    assert [arm.gpu_seconds_per_request for arm in found.arms] == [pytest.approx(0.8), None]
    assert found.arms[0].means["gpu"] == pytest.approx(0.8)
    assert "GPU seconds (estimated)" in show.text(found)


def test_every_estimated_figure_is_called_estimated(tmp_path: Path) -> None:
    prices = {"decoded": 0.01, "prefilled": 0.002}
    metrics = {
        "thumbs": {"source": "feedback", "low": 0.0, "high": 1.0, "absent": 0.0},
        "gpu": {"source": "tokens", "gpu_seconds_per_token": prices},
        "decoding": {"source": "tokens", "kinds": ["decoded"], "gpu_seconds_per_token": prices},
        "tokens": {"source": "tokens"},
    }
    log, random_ = Lines(), random.Random(5)
    for number in range(400):
        arm = random_.choice(["plain", "power"])
        log.request(f"u{number}", arm, float(number), decoded=random_.randint(50, 150))
    found = made(log.write(tmp_path), metrics=metrics, guardrails=[])
    lines = show.text(found).splitlines()
    told = {
        line.split()[1]: " ".join(lines[n + 1 : n + 3]) for n, line in enumerate(lines) if " against " in line
    }
    for name in ("gpu:", "decoding:"):
        assert "GPU seconds per request (estimated)" in " ".join(told[name].split())
    assert "tokens per request" in told["tokens:"]
    assert "per request" not in told["thumbs:"]
    shown = " ".join(page.rendered(found).split())
    for name in ("gpu", "decoding"):
        assert f'{name} <span class="quiet">GPU seconds per request (estimated)</span></td>' in shown


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        ({"ok": 3, "running": 97}, "100%"),
        ({"ok": 2, "fallback": 1, "error": 1, "lost": 1}, "60%"),
        ({"running": 4}, "-"),
        ({}, "-"),
    ],
    ids=str,
)
def test_the_share_that_was_answered(outcomes: dict[str, int], said: str) -> None:
    """Requests that still run are no failures, and the default sampler's answer is one."""
    arm = full_report().arms[0].model_copy(update={"outcomes": outcomes, "requests": sum(outcomes.values())})
    assert wording.answered(arm) == said
    assert f" {said} " in show.text(full_report().model_copy(update={"arms": (arm,)}))


def test_shadows_are_told_apart_from_served_arms(tmp_path: Path) -> None:
    log = Lines()
    exposures = [log.request(f"u{n}", "plain", float(n)) for n in range(3)]
    for exposure, same in zip(exposures, [True, False, None], strict=True):
        log.shadow(exposure, "entropy", "plain", 10.0, same)
    found = made(log.write(tmp_path), **SHADOWED)
    (shadow,) = found.shadows
    assert (shadow.runs, shadow.ok, shadow.same_text, shadow.tokens_per_run) == (3, 2, 1, 10.0)
    assert [arm.name for arm in found.arms] == ["plain", "power"]


def test_a_kill_is_told(tmp_path: Path) -> None:
    log = Lines()
    log.request("u1", "plain", 0.0)
    log.kill(2 * HOUR)
    found = made(log.write(tmp_path))
    assert found.killed == 2 * HOUR
    assert "KILLED at 1970-01-01 02:00 UTC" in show.text(found)


MATCHED: dict[str, Any] = {
    "arms": [
        {"name": "plain", "sampler": {"sampler": "none"}, "weight": 3334, "control": "plain"},
        {"name": "best-of", "sampler": {"preset": "b"}, "weight": 3333, "control": "compute_matched"},
        {"name": "power", "sampler": {"preset": "p"}, "weight": 3333},
    ],
}


@pytest.mark.parametrize(
    ("power", "matched", "told"),
    [(301, 207, True), (207, 301, True), (200, 222, True), (200, 219, False), (200, 181, False)],
)
def test_a_control_that_is_not_compute_matched_is_a_warning(
    power: int, matched: int, told: bool, tmp_path: Path
) -> None:
    """Prefilled tokens are others', too: they do not matter."""
    log = Lines()
    for arm, decoded, prefilled in [("plain", 9, 1), ("best-of", matched, 1), ("power", power, 900)]:
        log.request(arm, arm, 0.0, decoded=decoded, prefilled=prefilled)
    found = made(log.write(tmp_path), **MATCHED)
    assert [(pair.arm, pair.control, pair.arm_tokens, pair.control_tokens) for pair in found.unmatched] == (
        [("power", "best-of", power, matched)] if told else []
    )
    warning = f"WARNING: best-of is no compute-matched control of power: it decodes {matched} tokens"
    assert (warning in show.text(found)) is told


def test_a_control_without_answers_is_not_called_unmatched(tmp_path: Path) -> None:
    log = Lines()
    log.request("u1", "power", 0.0)
    log.enrol("u2", "best-of", 0.0)
    assert made(log.write(tmp_path), **MATCHED).unmatched == ()


def test_rates_of_both_arms_and_the_relative_lift_are_told(tmp_path: Path) -> None:
    """Of 4 users each 1 and 3 are content; nobody fails, so there is nothing to divide by."""
    log = Lines()
    for arm, content in [("plain", 1), ("power", 3)]:
        for number in range(4):
            exposure = log.request(f"{arm}{number}", arm, float(number))
            log.say(exposure, float(number < content), 10.0)
    found = made(log.write(tmp_path))
    rates = {effect.metric: wording.rates(found, effect) for effect in found.effects}
    assert rates == {
        "thumbs": "power 0.75, plain 0.25: +200%",
        "failed": "power 0, plain 0",
        "tokens": "power 15, plain 15: +0%",
    }
    for shown in (show.text(found), page.rendered(found)):
        for said in rates.values():
            assert said in shown


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ({"source": "feedback", "absent": 0.5}, "the mean of what was said of its answers"),
        ({"source": "feedback", "absent": 0.5}, "and 0.5 where nothing was said"),
        ({"source": "feedback", "absent": 0.5, "per": "request"}, "0.5 for each of which nothing was said"),
        ({"source": "outcome", "outcomes": ["error", "lost"]}, "requests that ended as error, lost"),
        ({"source": "latency", "over_ms": 2000.0, "of": "ttft"}, "took over 2,000 ms to the first text"),
        ({"source": "tokens"}, "decoded and prefilled tokens of all that ran for a request"),
        ({"source": "tokens", "kinds": ["decoded"]}, "decoded tokens of all that ran for a request"),
    ],
)
def test_what_a_metric_holds_is_told(metric: dict[str, Any], said: str, tmp_path: Path) -> None:
    thumbs = {"source": "feedback", "low": 0.0, "high": 1.0, "absent": 0.0}
    found = made(tmp_path, metrics={"thumbs": thumbs, "m": metric}, guardrails=[])
    assert said in found.metrics["m"]
    assert found.metrics["m"] in " ".join(show.text(found).split())


def test_days_that_nobody_asks_for_are_not_told(tmp_path: Path) -> None:
    found = made(tmp_path)
    assert found.verdict.reason == "The minimum run is not reached: 0 of 100 units"


def test_the_text_has_every_part() -> None:
    text = show.text(full_report())
    for part in (
        "VERDICT: ship power",
        "compute_matched",
        "Sample ratio: green",
        "primary thumbs: power against best-of-8",
        "within its margin",
        "no interval yet: not enough data: 12 units with the event",
        "+0.066, between +0.031 and +0.101",
        "entropy: 512 runs",
        "31 values that a later one for the same answer replaced",
    ):
        assert part in text


def test_hostile_and_endless_strings_stay_within_the_terminal() -> None:
    report_ = full_report()
    hostile = "\x1b[31mred\u202e" + "x" * 300 + "\nVERDICT: ship"
    arms = tuple(arm.model_copy(update={"name": hostile}) for arm in report_.arms)
    spoilt = report_.model_copy(update={"owner": hostile, "hypothesis": hostile, "arms": arms})
    text = show.text(spoilt)
    assert not re.search(r"[^\n -~⟨⟩]", text)
    assert max(map(len, text.splitlines())) <= show.WIDTH
    assert [line for line in text.splitlines() if line.startswith("VERDICT")] == ["VERDICT: ship power"]


@pytest.mark.parametrize(
    ("role", "low", "high", "direction", "said"),
    [
        ("primary", 0.01, 0.02, "higher", "better"),
        ("primary", 0.01, 0.02, "lower", "worse"),
        ("primary", -0.02, -0.01, "higher", "worse"),
        ("shown", -0.02, -0.01, "lower", "better"),
        ("primary", -0.01, 0.01, "higher", "no difference shown"),
        ("guardrail", -0.01, 0.01, "higher", "within its margin"),
        ("guardrail", -0.03, 0.01, "higher", "undecided"),
        ("guardrail", 0.03, 0.04, "lower", "beyond its margin"),
        ("guardrail", None, None, "lower", "no interval yet"),
    ],
)
def test_what_an_interval_says(role: Any, low: float, high: float, direction: Any, said: str) -> None:
    assert wording.judged(effect(role, "m", low, high, direction=direction, threshold=0.02)) == said


def test_every_reason_of_exclusion_is_told() -> None:
    assert set(wording.EXCLUDED) == set(full_report().excluded.model_dump())
