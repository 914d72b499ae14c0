"""What operators meet behind SGLang's router: check, aborts, experiments, feedback, cache affinity."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from sglang_power.cli import main

from integration_tests.helpers.clients import (
    HTTP,
    LONG,
    PROMPT,
    abort,
    eventually,
    leave,
    metric,
    post,
    running,
    together,
)
from integration_tests.helpers.trials import feedback, reported
from integration_tests.router_tests.asking import (
    CHAT,
    COMPLETIONS,
    GENERATE,
    SEEDED,
    asked,
    body_of,
    carried,
    power,
)
from integration_tests.router_tests.cluster import ROUTING_KEY, Cluster

pytestmark = pytest.mark.server

Json = dict[str, Any]

REQUESTS = "sglang_power_requests_total"
NOT_ENROLLED = "sglang_power_experiment_not_enrolled_total"
ENDLESS: Json = {"max_tokens": 96, "ignore_eos": True, **carried(LONG)}
"""A chain that runs until it is stopped."""


# --- check ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_check_knows_the_router_and_its_workers_are_live(
    routed: Cluster, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--url", routed.router.url + ending]) == 2
    told = capsys.readouterr().err
    assert f"{routed.router.url} is SGLang's router" in told
    named = [line.split()[-1] for line in told.splitlines() if "sglang-power check --url" in line]
    assert sorted(named) == sorted(worker.url for worker in routed.workers)
    for url in named:
        assert main(["check", "--url", url + ending]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == "power sampling is live"


# --- aborts ---------------------------------------------------------------------------------------------


def mid_chain(routed: Cluster, before: float) -> bool:
    """Whether some children have run since."""
    return sum(routed.scheduled()) >= before + 6


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_leaves_nothing_behind(routed: Cluster, path: str, stream: bool) -> None:
    routed.quiet()
    before, ready = sum(routed.scheduled()), threading.Event()
    body = body_of(path, **{**ENDLESS, "stream": stream})
    with running(functools.partial(leave, routed.router, path, body, ready)):
        try:
            eventually(lambda: mid_chain(routed, before), "children run")
        finally:
            ready.set()
    routed.quiet()
    assert power(asked(routed.router, path, **carried(SEEDED)))


def test_aborts_are_posted_to_the_workers(routed: Cluster) -> None:
    """The router has no such route; completions keep the id that the client gave, chats are aborted all."""
    assert post(routed.router, "/abort_request", {"rid": "job"}).status_code == httpx.codes.NOT_FOUND
    asking: list[tuple[str, Json, Json]] = [
        (COMPLETIONS, {"rid": "job"}, {"rid": "job"}),
        (CHAT, {}, {"abort_all": True}),
    ]
    for path, fields, which in asking:
        routed.quiet()
        before = sum(routed.scheduled())
        call: Callable[[], Json] = functools.partial(asked, routed.router, path, **ENDLESS, **fields)
        with running(call) as answer:
            eventually(functools.partial(mid_chain, routed, before), "children run")
            for worker in routed.workers:
                abort(worker, **which)
            (report,) = power(answer.result())
        assert report["stopped_by"] == "abort"
    routed.quiet()


# --- experiments ----------------------------------------------------------------------------------------


def chat_of(prompt: str, **fields: Any) -> Json:
    """A short chat that names no sampler."""
    return {"messages": [{"role": "user", "content": prompt}], "max_tokens": 4, **fields}


def exposure_of(answer: Json) -> str | None:
    """The exposure id of a single answer, if it was enrolled."""
    found: str | None = power(answer)[0].get("exposure_id") if power(answer) else None
    return found


def prefix(number: int) -> str:
    """A prompt whose beginning no other number's shares."""
    return "R" + str(number) * 40 + "+1:"


def test_a_unit_in_metadata_has_one_arm_on_all_workers_and_its_feedback_counts(routed: Cluster) -> None:
    """Feedback is not the router's to forward; any worker takes it, also one that did not answer."""
    units = [f"user {number}" for number in range(12)]
    exposures = {
        unit: together([functools.partial(exposed, routed, unit, i) for i in range(4)]) for unit in units
    }
    lines = {line["exposure_id"]: line for line in routed.ground.lines("enrolment", "routed")}
    arms: dict[str, str] = {}
    for each in exposures.values():
        assert len({lines[exposure]["unit"] for exposure in each}) == 1
        (arm,) = {lines[exposure]["arm"] for exposure in each}
        arms |= dict.fromkeys(each, arm)
    assert len(arms) == 4 * len(units)
    assert set(arms.values()) == {"plain", "power"}
    assert len(enrolled_by(routed, set(arms))) == len(routed.workers), "every worker served some"
    for i, (exposure, arm) in enumerate(arms.items()):
        sent = {"exposure_id": exposure, "metric": "good", "value": float(arm == "power")}
        assert feedback(routed.router, json=sent).status_code == httpx.codes.NOT_FOUND
        assert feedback(routed.workers[i % 2], json=sent).status_code == httpx.codes.ACCEPTED
    eventually(lambda: means(routed) == {"plain": 0.0, "power": 1.0}, "the report counts all feedback")


def exposed(routed: Cluster, unit: str, number: int) -> str:
    """The exposure id of a unit's request; the numbers' prompts have nothing in common."""
    exposure = exposure_of(asked(routed.router, CHAT, **chat_of(prefix(number), metadata={"user_id": unit})))
    assert exposure is not None
    return exposure


def enrolled_by(routed: Cluster, exposures: set[str]) -> list[Path]:
    """The log files, one per worker, in which enrolments of these stand."""
    lines = {file: file.read_text() for file in routed.ground.log.glob("*.jsonl")}
    marks = [f'"type":"enrolment","exposure_id":"{exposure}"' for exposure in exposures]
    return [file for file, text in lines.items() if any(mark in text for mark in marks)]


def means(routed: Cluster) -> dict[str, float | None]:
    """Each arm's mean of the feedback."""
    return {arm.name: arm.means["good"] for arm in reported(routed.ground, "routed").arms}


def test_a_sampler_in_metadata_is_the_clients_own_choice(routed: Cluster) -> None:
    for named in (SEEDED, {"sampler": "none"}):
        before = refusals(routed, "own_sampler")
        answer = asked(routed.router, CHAT, **carried(named, user_id="user 1"))
        assert exposure_of(answer) is None
        assert refusals(routed, "own_sampler") == before + 1


def refusals(routed: Cluster, reason: str) -> float:
    """Requests that the experiment did not take for a reason, on all workers."""
    counts = [metric(worker, NOT_ENROLLED, experiment="routed", reason=reason) for worker in routed.workers]
    return sum(counts)


@pytest.mark.parametrize("arm", ["plain", "power"])
def test_a_tester_names_the_arm_in_metadata(routed: Cluster, arm: str) -> None:
    answer = asked(routed.router, CHAT, **chat_of(PROMPT, metadata={"user_id": "tester", "arm": arm}))
    exposure = exposure_of(answer)
    (line,) = [each for each in routed.ground.lines("enrolment", "routed") if each["exposure_id"] == exposure]
    assert (line["arm"], line["override"]) == (arm, True)


def test_the_user_of_a_chat_is_lost_and_that_of_completions_is_not(routed: Cluster) -> None:
    """Where this fails, the router has learned something, and the documents are wrong."""
    assert exposure_of(asked(routed.router, CHAT, **chat_of(PROMPT, user="u"))) is None
    assert exposure_of(asked(routed.workers[0], CHAT, **chat_of(PROMPT, user="u"))) is not None
    assert exposure_of(asked(routed.router, COMPLETIONS, user="u", max_tokens=4)) is not None


def test_a_header_that_the_router_knows_names_a_unit_of_generate(routed: Cluster) -> None:
    body = {"text": PROMPT, "sampling_params": {"max_new_tokens": 4}, "metadata": {"user_id": "u"}}
    for header, enrolled in ((ROUTING_KEY, True), ("x-user-id", False)):
        response = HTTP.post(routed.router.url + GENERATE, json=body, headers={header: "u"})
        assert ("exposure_id" in response.json()["meta_info"]["power"]) == enrolled


# --- cache affinity -------------------------------------------------------------------------------------


def test_requests_that_share_a_prefix_share_a_worker(routed: Cluster) -> None:
    """The router sends a prompt where its prefix is cached, so that a chain finds it there at once.

    The second prefix comes while a worker is busy with the first: it goes to the other one, and stays.
    """
    routed.quiet()
    first, second = prefix(91), prefix(82)
    before = sum(routed.scheduled())
    endless = {**chat_of(first), **ENDLESS}
    with running(functools.partial(asked, routed.router, CHAT, **endless)):
        eventually(lambda: mid_chain(routed, before), "children run")
        served_by(routed, second)
        for worker in routed.workers:
            abort(worker, abort_all=True)
    homes = {}
    for start in (first, second):
        served = [served_by(routed, start + ending) for ending in ("2", "34", "567")]
        (homes[start],) = {worker for worker, _ in served}
        assert all(cached >= len(start) for _, cached in served)
    assert homes[first] != homes[second]


def served_by(routed: Cluster, prompt: str) -> tuple[str, int]:
    """Which worker answered a power request, and how much of its prompt was cached."""
    before = [metric(worker, REQUESTS) for worker in routed.workers]
    usage = asked(routed.router, CHAT, **chat_of(prompt), **carried(SEEDED))["usage"]
    grown = [
        worker.name
        for worker, was in zip(routed.workers, before, strict=True)
        if metric(worker, REQUESTS) > was
    ]
    (name,) = grown
    return name, usage["prompt_tokens_details"]["cached_tokens"]
