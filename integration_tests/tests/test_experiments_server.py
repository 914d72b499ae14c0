"""Experiments through the real server with two tokenizer workers: who is enrolled, and what is said of it."""

from __future__ import annotations

import collections
import re
from typing import Any

import httpx
import pytest
from sglang_power.check_cli import describe
from sglang_power.cli import main

from integration_tests.helpers.clients import HTTP, PROMPT, events, eventually, metric
from integration_tests.helpers.trials import (
    SHORT,
    WORKERS,
    Trials,
    ask,
    drive,
    exposure_of,
    reported,
    wait_until,
    write_and_wait,
)
from integration_tests.server import Server

pytestmark = pytest.mark.server

Json = dict[str, Any]

UNITS = [f"user {number}" for number in range(1_000)]
REQUESTS = 3_000
PROBLEMS = "sglang_power_experiment_reload_problems_total"
EXPOSURE = re.compile(r'"type":"enrolment","exposure_id":"([0-9a-f]+)"')
NOT_ENROLLED = "sglang_power_experiment_not_enrolled_total"


def test_every_enrolled_answer_has_one_enrolment_line_and_every_unit_one_arm(trials: Trials) -> None:
    """3,000 requests of 1,000 units. The split is 80/20 within 5 standard deviations (1 in 1.7 million)."""
    ground = trials.ground
    traffic = drive(trials.server, "x-main", [UNITS[i % len(UNITS)] for i in range(REQUESTS)])
    assert set(traffic.statuses) == {200}
    exposures = set(map(str, traffic.exposures))
    assert len(exposures) == REQUESTS

    def lines(kind: str) -> list[Json]:
        return [line for line in ground.lines(kind, "main") if line["exposure_id"] in exposures]

    eventually(lambda: len(lines("completion")) >= REQUESTS, "every completion line")
    for kind in ("enrolment", "completion"):
        assert collections.Counter(line["exposure_id"] for line in lines(kind)) == collections.Counter(
            exposures
        )
    assert {line["outcome"] for line in lines("completion")} == {"ok"}
    assert not any(unit in str(line) for unit in UNITS[:20] for line in lines("enrolment")), (
        "names are hashed"
    )
    arms: dict[str, set[str]] = collections.defaultdict(set)
    for line in lines("enrolment"):
        arms[line["unit"]].add(line["arm"])
    assert len(arms) == len(UNITS)
    assert all(len(each) == 1 for each in arms.values()), "whichever worker took a request"
    share = sum(each == {"power"} for each in arms.values()) / len(arms)
    assert abs(share - 0.2) < 5 * (0.2 * 0.8 / len(arms)) ** 0.5
    writers = [
        file for file in ground.log.glob("*.jsonl") if exposures & set(EXPOSURE.findall(file.read_text()))
    ]
    assert len(writers) == WORKERS


@pytest.mark.parametrize("n", [1, 2])
def test_the_completion_counts_the_tokens_of_all_children(trials: Trials, n: int) -> None:
    asked = {**SHORT, "n": n}
    responses = [ask(trials.server, {"x-main": unit}, sampling_params=asked).json() for unit in UNITS[:24]]
    groups = [response if n > 1 else [response] for response in responses]
    wanted = {str(exposure_of(answers[0])) for answers in groups}

    def lines() -> dict[str, Json]:
        found = trials.ground.lines("completion", "main")
        return {line["exposure_id"]: line for line in found if line["exposure_id"] in wanted}

    eventually(lambda: len(lines()) == len(groups), "every completion line")
    ran: collections.Counter[str] = collections.Counter()
    for answers in groups:
        line = lines()[str(exposure_of(answers[0]))]
        ran[line["sampler"]] += 1
        metas = [answer["meta_info"] for answer in answers]
        if line["arm"] == "power":
            costs = [(meta["power"]["decoded_tokens"], meta["power"]["prefilled_tokens"]) for meta in metas]
            children = sum(meta["power"]["children"] for meta in metas)
            assert children == 1 + 2 * n, "the prompt; of each chain one block, one step"
        else:
            costs = [
                (meta["completion_tokens"], meta["prompt_tokens"] - meta["cached_tokens"]) for meta in metas
            ]
        expected = tuple(map(sum, zip(*costs, strict=True)))
        assert (line["tokens"]["decoded"], line["tokens"]["prefilled"]) == expected
    assert set(ran) == {"none", "power"}


@pytest.mark.parametrize(
    ("reason", "body"),
    [
        ("own_sampler", {"sampling_params": {**SHORT, "custom_params": {"sampler": "none"}}}),
        ("own_sampler", {"sampling_params": SHORT, "sampler": "none"}),
        ("greedy", {"sampling_params": {**SHORT, "temperature": 0.0}}),
        ("seed", {"sampling_params": {**SHORT, "sampling_seed": 5}}),
        ("unsupported", {"sampling_params": {**SHORT, "temperature": 0.7}}),
        ("unsupported", {"sampling_params": {**SHORT, "stop_regex": "[0-9]"}}),
        ("not_eligible", {"sampling_params": {**SHORT, "max_new_tokens": 1}}),
        ("batch", {"text": [PROMPT, PROMPT], "sampling_params": SHORT}),
    ],
)
def test_what_cannot_be_enrolled_runs_as_without_the_experiment(
    trials: Trials, reason: str, body: Json
) -> None:
    before = metric(trials.server, NOT_ENROLLED, experiment="main", reason=reason)
    enrolled = len(trials.ground.lines("enrolment", "main"))
    response = ask(trials.server, {"x-main": UNITS[0]}, **body)
    assert response.status_code == httpx.codes.OK, response.text
    answers = response.json()
    for answer in answers if isinstance(answers, list) else [answers]:
        assert "power" not in answer["meta_info"]
    assert metric(trials.server, NOT_ENROLLED, experiment="main", reason=reason) == before + 1
    assert len(trials.ground.lines("enrolment", "main")) == enrolled


def test_a_body_without_sampling_parameters_is_served_by_either_arm(trials: Trials) -> None:
    answers = [ask(trials.server, {"x-main": unit}, sampling_params=None) for unit in UNITS[:24]]
    assert {answer.status_code for answer in answers} == {httpx.codes.OK}
    reports = [answer.json()["meta_info"]["power"] for answer in answers]
    assert {report["sampler"] for report in reports} == {"none", "power"}
    assert all(report["exposure_id"] for report in reports)


@pytest.mark.parametrize("headers", [{}, {"x-main": ""}])
def test_requests_without_a_unit_are_nobodys(trials: Trials, headers: dict[str, str]) -> None:
    before = metric(trials.server, NOT_ENROLLED, experiment="main", reason="no_unit")
    assert "power" not in ask(trials.server, headers).json()["meta_info"]
    assert metric(trials.server, NOT_ENROLLED, experiment="main", reason="no_unit") == before + 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_openai_clients_see_the_exposure(trials: Trials, endpoint: str, stream: bool) -> None:
    """The unit is OpenAI's `user`; among eight users both arms occur (fixed names, so always or never)."""
    if not trials.ground.lines("change", "user"):
        write_and_wait(trials, "user", unit={"field": "user"})
    path = "/v1/completions" if endpoint == "completions" else "/v1/chat/completions"
    prompt: Json = (
        {"prompt": PROMPT}
        if endpoint == "completions"
        else {"messages": [{"role": "user", "content": PROMPT}]}
    )
    asked = {"model": "trials", "max_tokens": 4, "temperature": 1.0, "stream": stream, **prompt}
    samplers = set()
    for unit in UNITS[:8]:
        body = {**asked, "user": unit}
        if stream:
            told = [
                event["metadata"]["power"]
                for event in events(trials.server, path, body)
                if event.get("metadata")
            ]
        else:
            response = HTTP.post(trials.server.url + path, json=body)
            told = [response.json()["metadata"]["power"]]
        ((report,),) = told
        samplers.add(report["sampler"])
        lines = trials.ground.lines("enrolment", "user")
        (line,) = [line for line in lines if line["exposure_id"] == report["exposure_id"]]
        assert (line["endpoint"], line["stream"]) == (endpoint, stream)
    assert samplers == {"none", "power"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
def test_the_head_of_a_response_names_its_exposure(trials: Trials, path: str, stream: bool) -> None:
    """For frameworks that hand on headers and nothing of the body but the text; both arms, and nobody's."""
    ground = trials.ground
    if not ground.lines("change", "head"):
        write_and_wait(trials, "head")
    said: Json = {"messages": [{"role": "user", "content": PROMPT}]} if "chat" in path else {"prompt": PROMPT}
    body: Json = {"model": "trials", "max_tokens": 4, "temperature": 1.0, **said}
    if path == "/generate":
        body = {"text": PROMPT, "sampling_params": SHORT}
    arms = set()
    for unit in [*UNITS[:8], None]:
        headers = {} if unit is None else {"x-head": unit}
        asked = {**body, "stream": stream}
        with HTTP.stream("POST", trials.server.url + path, json=asked, headers=headers) as response:
            exposure = response.headers.get("x-sglang-power-exposure-id")
            text = response.read().decode()
        assert (exposure is None) is (unit is None)
        if exposure is not None:
            assert exposure in text
            (line,) = [line for line in ground.lines("enrolment", "head") if line["exposure_id"] == exposure]
            arms.add(line["arm"])
    assert arms == {"plain", "power"}


def test_a_drain_serves_everybody_and_admits_nobody_new(trials: Trials) -> None:
    ground, server = trials.ground, trials.server
    write_and_wait(trials, "drained")
    assert None not in drive(server, "x-drained", UNITS[:20]).exposures
    write_and_wait(trials, "drained", drain=True)
    assert None not in drive(server, "x-drained", UNITS[:40]).exposures
    status = HTTP.get(server.url + "/sglang_power/status").json()
    assert "experiment drained: enrolling, draining" in describe(status)
    eventually(lambda: len(ground.lines("completion", "drained")) == 60, "every completion line")
    made = reported(ground, "drained")
    assert made.draining is not None
    assert (made.units, made.excluded.after_drain) == (20, 20)
    assert sum(arm.requests for arm in made.arms) == 40, "the first twenty go on"


def test_a_kill_that_is_taken_back_and_an_edit_of_the_owner_lose_nothing_that_is_whole(
    trials: Trials,
) -> None:
    ground, server = trials.ground, trials.server
    write_and_wait(trials, "back", owner="first")
    drive(server, "x-back", UNITS[:10])
    write_and_wait(trials, "back", owner="second", kill=True)
    assert set(drive(server, "x-back", UNITS[:10]).exposures) == {None}
    write_and_wait(trials, "back", owner="third")
    assert None not in drive(server, "x-back", UNITS[10:30]).exposures
    eventually(lambda: len(ground.lines("completion", "back")) == 30, "every completion line")
    made = reported(ground, "back")
    assert (made.killed, made.units, made.excluded.cut_units) == (None, 20, 10)
    assert made.excluded.other_configuration == 0


def checked(server: Server, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Exit status and report of `sglang-power check`."""
    status = main(["check", "--url", server.url])
    return status, capsys.readouterr().out.splitlines()


def test_a_bad_edit_keeps_the_last_good_one_and_says_so(
    trials: Trials, capsys: pytest.CaptureFixture[str]
) -> None:
    server = trials.server
    write_and_wait(trials, "edited")
    path = trials.ground.experiments / "edited.yaml"
    problems = metric(server, PROBLEMS)
    path.write_text(path.read_text().replace("weight: 5000", "weight: 4000"))
    wait_until(lambda: metric(server, PROBLEMS) >= problems + WORKERS, server)
    assert f"{path}, line" in server.log_text()
    assert "weights sum to 8000" in server.log_text()
    assert exposure_of(ask(server, {"x-edited": UNITS[0]}).json()) is not None
    status, lines = checked(server, capsys)
    assert status == 0
    workers = [line for line in lines if line.startswith("tokenizer (pid ")]
    assert len(workers) == WORKERS
    (told,) = [line for line in lines if line.startswith("rejected edit at")]
    assert all(re.search(r"pid (\d+)", line)[1] in told for line in workers)  # type: ignore[index]
    assert f"what was in force stays: {path}, line" in told
    path.unlink()
    wait_until(lambda: "corrected since" in "".join(checked(server, capsys)[1]), server)


def test_the_kill_switch_ends_enrolment_and_nothing_else(trials: Trials) -> None:
    ground, server = trials.ground, trials.server
    write_and_wait(trials, "killed")
    first = drive(server, "x-killed", UNITS[:20])
    assert None not in first.exposures
    write_and_wait(trials, "killed", kill=True)
    refused = metric(server, NOT_ENROLLED, experiment="killed", reason="killed")
    later = drive(server, "x-killed", UNITS[:20])
    assert set(later.statuses) == {200}
    assert set(later.exposures) == {None}
    eventually(lambda: len(ground.lines("completion", "killed")) == 20, "every completion line")
    assert metric(server, NOT_ENROLLED, experiment="killed", reason="killed") == refused + 20
    made = reported(ground, "killed")
    assert made.killed is not None
    assert made.verdict.decision != "ship"
    status = HTTP.get(server.url + "/sglang_power/status").json()
    assert {"experiment main: enrolling", "experiment killed: not enrolling"} <= set(describe(status))
