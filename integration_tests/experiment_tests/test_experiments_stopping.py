"""What the log of experiments survives: clients that leave, a server that is started again, kill -9."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from sglang_power.experiments.analysis.reading import UnreadableLines, lines

from integration_tests.helpers.clients import PROMPT, eventually, leave, running, standstill, together
from integration_tests.helpers.trials import (
    PLAIN,
    REWEIGHTED,
    SHORT,
    WORKERS,
    Ground,
    Trials,
    ask,
    assigned,
    drive,
    exposure_of,
    feedback,
    reported,
    write_and_wait,
)

pytestmark = pytest.mark.server

UNITS = [f"user {number}" for number in range(1_000)]
UNKNOWN = "0" * 12 + "4" + "0" * 3 + "8" + "0" * 15
"""Shaped like an exposure id."""


def test_feedback_is_taken_by_any_worker_and_joined_in_the_report(trials: Trials) -> None:
    write_and_wait(trials, "liked")
    before = count(trials.ground.log, "feedback")
    for i, unit in enumerate(UNITS[:40]):
        exposure = exposure_of(ask(trials.server, {"x-liked": unit}).json())
        sent = {"exposure_id": exposure, "metric": "good", "value": float(i % 2)}
        assert feedback(trials.server, json=sent).status_code == httpx.codes.ACCEPTED
    sent = {"exposure_id": UNKNOWN, "metric": "good", "value": 1.0}
    assert feedback(trials.server, json=sent).status_code == httpx.codes.ACCEPTED, "nothing is looked up"
    eventually(lambda: count(trials.ground.log, "feedback") == before + 41, "every line of feedback")
    made = reported(trials.ground, "liked")
    assert (made.units, made.excluded.unmatched_feedback) == (40, 1)
    assert sum((arm.means["good"] or 0.0) * arm.units for arm in made.arms) == pytest.approx(20)


def count(log: Path, kind: str) -> int:
    """Whole lines of a kind."""
    return sum(line.type == kind for line in lines(log, UnreadableLines()))


@pytest.mark.parametrize(
    ("status", "field", "sent"),
    [
        (401, "Authorization", {"key": None, "json": {}}),
        (401, "Authorization", {"key": "another", "json": {}}),
        (400, "body", {"content": b"no json"}),
        (400, "exposure_id='x'", {"json": {"exposure_id": "x", "metric": "good", "value": 1.0}}),
        (400, "exposure_id=None", {"json": {"metric": "good", "value": 1.0}}),
        (400, "value=", {"json": {"exposure_id": UNKNOWN, "metric": "good", "value": "much"}}),
        (413, "max_feedback_bytes", {"content": b"x" * 5000}),
    ],
)
def test_bad_feedback_is_refused_by_name(
    trials: Trials, status: int, field: str, sent: dict[str, Any]
) -> None:
    before = count(trials.ground.log, "feedback")
    response = feedback(trials.server, **sent)
    assert response.status_code == status
    assert field in response.json()["error"]["message"]
    assert count(trials.ground.log, "feedback") == before


def test_clients_of_a_slow_arm_that_leave_are_a_visible_loss_and_no_mismatch(trials: Trials) -> None:
    ground = trials.ground
    slow = {"sampler": "power", "block_size": 4, "steps": 2_000, "early_rejection": False}
    write_and_wait(
        trials,
        "impatient",
        arms=[PLAIN, {"name": "slow", "sampler": slow, "weight": 5000}],
        metrics={"gone": {"source": "outcome", "outcomes": ["disconnect", "lost"]}},
        primary={"metric": "gone", "min_effect": 0.0},
    )
    params = {**SHORT, "max_new_tokens": 48, "ignore_eos": True}
    traffic = drive(trials.server, "x-impatient", UNITS[:60], at_once=8, timeout=3.0, sampling_params=params)
    assert traffic.statuses.count(0) > 20, "the clients of the slow arm left"

    def all_have_ended() -> bool:
        return len(ground.lines("completion", "impatient")) == len(ground.lines("enrolment", "impatient"))

    eventually(all_have_ended, "a completion line for every client that left")
    made = reported(ground, "impatient")
    assert sum(made.srm.units.values()) == 60, "enrolled before they could leave"
    assert not made.srm.red
    outcomes = {arm.name: arm.outcomes for arm in made.arms}
    assert outcomes["slow"].get("disconnect", 0) == made.srm.units["slow"]
    assert outcomes["plain"].get("ok", 0) > 0
    means = {arm.name: arm.means["gone"] for arm in made.arms}
    assert means["slow"] == 1.0


EVERY_KIND = {
    "power": {"sampler": "power", "block_size": 4, "steps": 1},
    "best_of": {"sampler": "best_of", "samples": 2},
    "vote": {"sampler": "vote", "samples": 2},
    "policy": {"sampler": "top_n_sigma"},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("resumed", [False, True])
def test_a_client_that_leaves_is_a_loss_of_whichever_arm_it_has(
    trials: Trials, stream: bool, resumed: bool
) -> None:
    """No arm has answered when the clients leave: they are missed meanwhile, or when the answer is whole."""
    name = f"left-{stream}-{resumed}".lower()
    arms = [{"name": kind, "sampler": sampler, "weight": 2000} for kind, sampler in EVERY_KIND.items()]
    write_and_wait(trials, name, arms=[{**PLAIN, "weight": 2000}, *arms])
    lines = functools.partial(trials.ground.lines, experiment=name)
    body = {"text": PROMPT, "sampling_params": SHORT, "stream": stream}
    ready = threading.Event()
    calls = [
        functools.partial(leave, trials.server, "/generate", body, ready, {f"x-{name}": unit})
        for unit in UNITS[:40]
    ]
    with standstill(trials.server) as resume:
        with running(lambda: together(calls)):
            eventually(lambda: len(lines("enrolment")) == len(calls), "all of them are enrolled")
            ready.set()
        if resumed:
            resume()
        eventually(lambda: len(lines("completion")) == len(calls), "all of them have ended")
    assert {line["arm"] for line in lines("completion")} == {"plain", *EVERY_KIND}
    assert {line["outcome"] for line in lines("completion")} == {"disconnect"}


def test_a_restart_moves_nobody_and_a_reweighting_the_fewest(trials: Trials) -> None:
    """70/30 instead of 80/20: whoever moves goes the way that the weights went, so nobody moves in vain.

    That is the fewest for these units. It is 10% of all units, and of these 1,000 within 3 standard
    deviations (27); they are fixed, so that it always is or never.
    """
    ground = trials.ground
    if len(assigned(ground, "main")) < len(UNITS):
        assert None not in drive(trials.server, "x-main", UNITS).exposures
    server = trials.restart()
    assert None not in drive(server, "x-main", UNITS).exposures
    arms = assigned(ground, "main")
    assert len(arms) == len(UNITS)
    assert all(len(each) == 1 for each in arms.values()), "an unchanged file moves nobody"
    write_and_wait(trials, "main", arms=REWEIGHTED)
    drive(server, "x-main", UNITS)
    changed = after_reweighting(ground)
    assert changed.keys() == arms.keys()
    moved = [arm for unit, arm in changed.items() if {arm} != arms[unit]]
    assert set(moved) == {"power"}
    assert abs(len(moved) - 100) <= 27


def after_reweighting(ground: Ground) -> dict[str, str]:
    """Unit -> arm, of what was enrolled under another configuration than the experiment began with."""
    first = min(ground.lines("change", "main"), key=lambda change: float(change["at"]))["config"]
    return {
        line["unit"]: line["arm"] for line in ground.lines("enrolment", "main") if line["config"] != first
    }


def test_kill_9_loses_at_most_a_second_and_tears_at_most_the_last_lines(trials: Trials) -> None:
    ground, server = trials.ground, trials.server
    known = drive(server, "x-main", UNITS[:300])
    assert None not in known.exposures
    time.sleep(1.0)  # the stated bound
    os.killpg(server.pid, signal.SIGKILL)
    eventually(lambda: not trials.is_alive(), "the server is gone")
    unreadable = UnreadableLines()
    enrolled = {line.exposure_id for line in lines(ground.log, unreadable) if line.type == "enrolment"}
    assert {str(exposure) for exposure in known.exposures} <= enrolled
    assert unreadable.bad == 0
    assert unreadable.torn <= WORKERS
