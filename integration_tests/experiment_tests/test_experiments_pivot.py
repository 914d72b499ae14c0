"""Experiments end to end: graded answers to a verdict, shadow arms, failing arms, switchbacks, testers.

Statistical claim of the first tests: on problems of six operations power is right in 0.950 of its answers,
best_of at more tokens in 0.357, plain in 0.133 (300, 300 and 150 answers of this server). Simulated with
these rates 5 of 4,200 experiments of 180 units do not ship it; with 0.93, 0.40 and 0.16, 6 of 4,200. Who has
which arm is fixed by the units' names, the answers are random draws.
"""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sglang_power.experiments.analysis import wording
from sglang_power.experiments.analysis.results import Report
from sglang_power.experiments.assignment import Assigned, Assigner
from sglang_power.experiments.catalogue import Catalogue
from sglang_power.experiments.providers import Embedded

from integration_tests.helpers.clients import PROMPT, eventually, quiet, together
from integration_tests.helpers.pivot_trials import (
    EXPERIMENTS,
    OPERATIONS,
    SHADOW_BUDGET,
    UNITS,
    Json,
    answer_and_grade,
    by_units,
    completed,
    enrolled,
    events_of,
    exposures_of,
    graded_lines,
    in_a_window,
    is_done_with_shadows,
    shadowed_workers,
    shared_windows,
    washouts_between,
    windows_between,
    written,
)
from integration_tests.helpers.trials import (
    LATER_S,
    SHORT,
    WORKERS,
    Ground,
    Trials,
    ask,
    drive,
    exposure_of,
    load_and_wait,
    reported,
)
from integration_tests.pivot.problems import problems
from integration_tests.server import Server

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def ground(one_trials: Trials) -> Iterator[Ground]:
    """All experiments of this file, each with units of its own, beside those that are there.

    A switchback enrols everybody, so that it ends with this file: elsewhere, who names no unit is nobody's.
    """
    one_trials.revive()
    load_and_wait(one_trials, EXPERIMENTS)
    yield one_trials.ground
    load_and_wait(one_trials, {"windows": EXPERIMENTS["windows"] | {"kill": True}})


@pytest.fixture(scope="module")
def trials(one_trials: Trials, ground: Ground) -> Server:  # noqa: ARG001  (its experiments)
    """The server that has them."""
    return one_trials.server


# --- from graded answers to a verdict ---


@pytest.fixture(scope="module")
def graded(ground: Ground, trials: Server) -> Report:
    """The experiment on family R, from its requests to its report."""
    drawn = problems("R", 8 * UNITS, seed=6)
    asked = [problem for problem in drawn if len(problem.operations) == OPERATIONS][:UNITS]
    assert len(asked) == UNITS
    asyncio.run(answer_and_grade(trials.url, asked))
    completed(ground, "graded", UNITS)
    exposures = set(enrolled(ground, "graded"))
    eventually(lambda: exposures <= exposures_of(ground, "feedback"), "all feedback is written")
    return reported(ground, "graded")


def test_power_ships_against_plain_and_against_as_much_compute(graded: Report) -> None:
    assert (graded.verdict.decision, graded.verdict.arm) == ("ship", "power"), graded.verdict.reason
    assert graded.units == UNITS
    assert not graded.srm.red
    against = {effect.control: effect.interval for effect in graded.effects if effect.role == "primary"}
    assert set(against) == {"plain", "best_of"}
    assert all(interval.low is not None and interval.low >= 0.05 for interval in against.values())
    assert not any(vars(graded.excluded).values()), graded.excluded


def test_the_report_shows_what_it_costs(graded: Report) -> None:
    cost = {arm.name: arm.tokens_per_request["decoded"] for arm in graded.arms}
    assert cost["power"] > 10 * cost["plain"]
    assert cost["power"] <= cost["best_of"] < 2 * cost["power"], "compute-matched, not below"
    assert all(arm.outcomes == {"ok": arm.requests} for arm in graded.arms)


def test_with_plain_and_power_exchanged_nothing_ships(ground: Ground, graded: Report, tmp_path: Path) -> None:
    other = {"plain": "power", "power": "plain"}
    swapped = [
        {**line, "arm": other.get(line["arm"], line["arm"])} if "arm" in line else line
        for line in graded_lines(ground)
    ]
    made = reported(ground, "graded", written(tmp_path, swapped))
    assert made.units == graded.units
    assert (made.verdict.decision, made.verdict.arm) == ("stop", "power"), made.verdict.reason


def test_the_command_writes_the_same_report(ground: Ground, graded: Report, tmp_path: Path) -> None:
    """Of a log as if all had happened earlier: it gives no reports as of a time to come."""
    document, page = tmp_path / "report.json", tmp_path / "report.html"
    earlier = [{**line, "at": line["at"] - LATER_S} for line in graded_lines(ground)]
    log = written(tmp_path / "log", earlier)
    command = [str(Path(sys.executable).with_name("sglang-power")), "ab", "report"]
    asked = [str(ground.experiments / "graded.yaml"), "--log", str(log)]
    options = ["--json", str(document), "--html", str(page)]
    done = subprocess.run([*command, *asked, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "VERDICT: ship power" in done.stdout
    assert Report.model_validate_json(document.read_text()) == reported(ground, "graded", log)
    drawn = page.read_text()
    assert graded.verdict.reason in drawn
    for arm in graded.arms:
        assert f"{wording.number(arm.tokens_per_request['decoded'])}</td>" in drawn  # behind its label


# --- shadow arms ---


def test_shadows_run_beside_what_is_served_until_their_budget_is_spent(
    ground: Ground, trials: Server
) -> None:
    """Which worker takes a connection is nobody's choice: what holds, holds of each of them."""
    asked = WORKERS * SHADOW_BUDGET  # a run decodes a token at least: one of them spends its budget
    assert set(drive(trials, "x-shadowed", [f"user {number}" for number in range(asked)]).statuses) == {200}
    served = completed(ground, "shadowed", asked)
    assert {line["arm"] for line in served.values()} == {"plain", "power"}
    eventually(lambda: all(map(is_done_with_shadows, shadowed_workers(ground).values())), "the shadows")
    quiet(trials)
    for line in ground.lines("shadow", "shadowed"):
        pair = served[line["exposure_id"]]
        assert (line["arm"], line["served"], line["outcome"]) == ("deep", pair["arm"], "ok")
        assert line["same_text"] in (True, False)
    before = shadowed_workers(ground)
    assert any(sum(worker.tokens) >= SHADOW_BUDGET for worker in before.values())

    drive(trials, "x-shadowed", [f"user {number}" for number in range(20)])
    completed(ground, "shadowed", asked + 20)
    eventually(lambda: all(map(is_done_with_shadows, shadowed_workers(ground).values())), "the shadows")
    after = shadowed_workers(ground)
    for file, worker in before.items():
        if sum(worker.tokens) >= SHADOW_BUDGET:
            assert after[file].tokens == worker.tokens, "what is spent is spent"
    assert all(sum(worker.tokens[:-1]) < SHADOW_BUDGET for worker in after.values()), "started within it"
    (shadow,) = reported(ground, "shadowed").shadows
    assert (shadow.name, shadow.runs) == ("deep", sum(len(worker.tokens) for worker in after.values()))


# --- arms that fail ---


def test_the_default_sampler_answers_for_an_arm_that_fails(ground: Ground, trials: Server) -> None:
    answers = [response.json() for response in by_units(trials, "fragile")]
    assert all(answer["text"] and answer["meta_info"]["power"]["sampler"] == "none" for answer in answers)
    lines = completed(ground, "fragile", len(answers))
    outcomes = {(line["arm"], line["outcome"], line["sampler"]) for line in lines.values()}
    assert outcomes == {("plain", "ok", "none"), ("broken", "fallback", "none")}
    for answer in answers:
        line, served = lines[str(exposure_of(answer))], answer["meta_info"]["completion_tokens"]
        spent = line["tokens"]["decoded"]
        assert spent == served if line["arm"] == "plain" else spent > served, "the arm's own, too"
    assert {str(exposure_of(answer)) for answer in answers} == set(lines) == set(enrolled(ground, "fragile"))
    made = reported(ground, "fragile")
    assert sum(made.srm.units.values()) == len(answers)
    assert not made.srm.red


@pytest.mark.parametrize("name", ["fragile", "strict"])
def test_streams_of_an_arm_that_fails(ground: Ground, trials: Server, name: str) -> None:
    known = set(enrolled(ground, name))
    ends: dict[str, list[Json]] = {"plain": [], "broken": []}
    for number in range(12):
        body = {"text": PROMPT, "sampling_params": SHORT, "stream": True}
        chunks = events_of(trials, {f"x-{name}": f"user {number}"}, body)
        eventually(lambda: len(enrolled(ground, name)) > len(known), "its enrolment")
        (new,) = set(enrolled(ground, name)) - known
        known.add(new)
        assert {exposure_of(chunk) for chunk in chunks} == {new}
        ends[enrolled(ground, name)[new]["arm"]].append(chunks[-1])
    assert all(ends.values())
    whole = ends["plain"] + (ends["broken"] if name == "fragile" else [])
    assert all(one["text"] for one in whole)
    assert {one["meta_info"]["finish_reason"]["type"] for one in whole} <= {"stop", "length"}
    if name == "strict":
        codes = {one["meta_info"]["finish_reason"]["status_code"] for one in ends["broken"]}
        assert codes == {httpx.codes.BAD_GATEWAY}
    lines = completed(ground, name, len(known)).values()
    failed = {line["outcome"] for line in lines if line["arm"] == "broken"}
    assert failed == {"fallback" if name == "fragile" else "error"}


def test_where_errors_are_asked_for_the_request_fails(ground: Ground, trials: Server) -> None:
    before = set(enrolled(ground, "strict"))
    statuses = [response.status_code for response in by_units(trials, "strict")]
    assert set(statuses) == {httpx.codes.OK, httpx.codes.BAD_GATEWAY}
    lines = completed(ground, "strict", len(before) + len(statuses))
    new = [line for exposure, line in lines.items() if exposure not in before]
    failed = [line for line in new if line["arm"] == "broken"]
    assert {line["outcome"] for line in failed} == {"error"}
    assert len(failed) == statuses.count(httpx.codes.BAD_GATEWAY)


# --- switchbacks ---


def test_a_window_has_one_arm_on_all_workers(ground: Ground, trials: Server) -> None:
    """The arms are those that the flags give in this process, too: any server of the pool would agree."""
    sent: dict[str, float] = {}

    def seen() -> bool:
        """Many at once: of requests one after the other the same worker may take all."""
        asked = together([functools.partial(in_a_window, trials)] * 16)
        sent.update({one.exposure: one.sent for one in asked})
        arms = {line["arm"] for line in ground.lines("enrolment", "windows")}
        return arms == {"plain", "power"} and bool(shared_windows(ground))

    eventually(seen, "both arms, and a window that both workers had requests in")
    assert set(completed(ground, "windows", len(sent))) == set(sent)
    loaded = Catalogue(ground.experiments, lambda *_: None).experiments
    (switchback,) = (one for one in loaded if one.experiment.name == "windows")
    assigner = Assigner(Embedded())
    assigner.load(loaded)
    lines = ground.lines("enrolment", "windows")
    for line in lines:
        assert asyncio.run(assigner.assign(switchback, line["unit"])) == Assigned(line["arm"])
        times = sent[line["exposure_id"]], line["at"]
        assert line["unit"] in windows_between(*times)
        assert line["washout"] in washouts_between(*times)
    made = reported(ground, "windows")
    assert made.excluded.washout == sum(line["washout"] for line in lines) > 0
    assert made.units == len({line["unit"] for line in lines if not line["washout"]})


# --- testers ---


def test_only_a_tester_may_choose_an_arm_and_is_not_analysed(ground: Ground, trials: Server) -> None:
    choose = "x-sglang-power-arm"
    for arm, sampler in (("plain", "none"), ("power", "power"), ("plain", "none")):
        answer = ask(trials, {"x-tested": "a tester", choose: arm}).json()
        assert answer["meta_info"]["power"]["sampler"] == sampler
    others = [
        {ask(trials, {"x-tested": unit, choose: arm}).json()["meta_info"]["power"]["sampler"] for arm in both}
        for both in [("plain", "power")]
        for unit in (f"user {number}" for number in range(8))
    ]
    assert all(len(samplers) == 1 for samplers in others), "the header means nothing of others"
    completed(ground, "tested", 3 + 16)
    lines = ground.lines("enrolment", "tested")
    assert sorted(line["override"] for line in lines) == [False] * 16 + [True] * 3
    made = reported(ground, "tested")
    assert (made.units, made.excluded.overrides) == (8, 3)


def test_a_tester_who_names_no_arm_is_told_so(trials: Server) -> None:
    response = ask(trials, {"x-tested": "a tester", "x-sglang-power-arm": "powr"})
    assert response.status_code == httpx.codes.BAD_REQUEST
    assert "x-sglang-power-arm='powr'" in response.text
    assert "Name one of plain, power" in response.text
