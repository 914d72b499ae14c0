"""Another package's sampler of whole answers through the real servers: from a preset, a program, an arm.

It uses a reward and the served model as a judge, which the prose model was trained to be; the pivot model has
no token for yes, so there the reward decides alone, and a judge is refused. The draws are seeded.
"""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import sglang as sgl
import sglang_power.frontend as sp
from sglang_power.request import table
from sglang_power.viewer.responses import record_of
from sglang_power.viewer.story import sentences

from integration_tests.helpers.clients import (
    HTTP,
    MESSAGES,
    PROMPT,
    eventually,
    post,
    power_of,
    raw_generate,
    scheduled,
)
from integration_tests.helpers.frontend import backend
from integration_tests.helpers.frontend import power_of as power_in
from integration_tests.helpers.third_party_sampler import (
    ShortlistRequest,
    ShortlistSampler,
    brevity,
    most_probable,
    shortlist,
)
from integration_tests.helpers.trials import SHORTLISTED, Ground
from integration_tests.server import Server

pytestmark = pytest.mark.server

Json = dict[str, Any]

QUESTION = "Where did the cat sleep?"
ASKED: Json = SHORTLISTED["sampler"]
ALONE: Json = {"sampler": "shortlist", "samples": 4, "keep": 1, "reward": "worked_steps"}


def check(power: Json, keep: int = 2, samples: int = 4) -> None:
    """The choice that a report tells is the one that its rewards and verdicts make."""
    rewards = [path["score"] for path in power["paths"]]
    assert rewards == [brevity("", path["text"]) for path in power["paths"]]
    assert (power["reward"]["name"], power["reward"]["failed"]) == ("brevity", 0)
    assert len(power["paths"]) == samples
    listed = [entry["index"] for entry in power["shortlist"]]
    assert listed == shortlist(rewards, keep)
    verdicts = [entry["log_right"] for entry in power["shortlist"]]
    assert all(verdict <= 0.0 for verdict in verdicts)
    assert power["judge"]["calls"] == keep
    assert power["chosen"] == {"index": most_probable(listed, verdicts), "reason": "self_evaluation"}
    assert (power["sampler"], power["law"], power["stopped_by"]) == ("shortlist", "selection", "completed")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The distribution in this process, too, as where a program runs."""
    known = {**table.samplers(), "shortlist": ShortlistRequest}
    monkeypatch.setattr(table, "samplers", lambda: known)


def test_a_preset_runs_it_with_a_reward_and_a_judge(prose_server: Server) -> None:
    params = {"max_new_tokens": 24, "custom_params": {"preset": "shortlisted", "seed": 3}}
    answer = raw_generate(prose_server, QUESTION, sampling_params=params)
    power = power_of(answer)
    check(power)
    assert answer["text"] == power["paths"][power["chosen"]["index"]]["text"]
    params = {"max_new_tokens": 24, "custom_params": {**ASKED, "seed": 3}}
    assert raw_generate(prose_server, QUESTION, sampling_params=params)["text"] == answer["text"]


@pytest.mark.usefixtures("installed")
def test_a_program_runs_it_with_a_reward_and_a_judge(prose_server: Server) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += QUESTION
        s += sp.gen("answer", max_tokens=24, seed=3, **ASKED)

    state = program.run(backend=backend(prose_server))
    check(power_in(state, "answer"))
    params = {"max_new_tokens": 24, "custom_params": {**ASKED, "seed": 3}}
    assert state["answer"] == raw_generate(prose_server, QUESTION, sampling_params=params)["text"]


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions"])
def test_an_arm_of_an_experiment_runs_it_with_a_reward_and_a_judge(
    prose_server: Server, prose_ground: Ground, path: str
) -> None:
    unit = {"x-shortlist": f"somebody {path}"}
    before = len(prose_ground.lines("completion", "shortlist"))
    body: Json = {"model": "prose", "max_tokens": 24, "temperature": 1.0, "messages": MESSAGES}
    if path == "/generate":
        body = {"text": QUESTION, "sampling_params": {"max_new_tokens": 24, "temperature": 1.0}}
    answer = HTTP.post(prose_server.url + path, json=body, headers=unit)
    assert answer.status_code == httpx.codes.OK, answer.text
    told = answer.json()
    power = power_of(told) if path == "/generate" else told["metadata"]["power"][0]
    check(power)
    eventually(lambda: len(prose_ground.lines("completion", "shortlist")) > before, "it is in the log")
    line = prose_ground.lines("completion", "shortlist")[-1]
    assert (line["arm"], line["outcome"]) == ("shortlisted", "ok")
    assert line["exposure_id"] == power["exposure_id"]


def test_the_viewer_tells_of_it_what_it_knows(prose_server: Server) -> None:
    params = {"max_new_tokens": 24, "custom_params": {**ASKED, "seed": 3}}
    told = sentences(record_of(raw_generate(prose_server, QUESTION, sampling_params=params)))
    assert told[0] == "The sampler “shortlist” came to 4 answers."
    assert "the model itself judged it most likely to be right" in told[1]


def test_the_reward_decides_alone_where_nobody_is_asked(pivot_server: Server) -> None:
    params = {"max_new_tokens": 48, "custom_params": {**ALONE, "seed": 5}}
    answer = raw_generate(pivot_server, PROMPT, sampling_params=params)
    power = power_of(answer)
    rewards = [path["score"] for path in power["paths"]]
    assert max(rewards) > min(rewards), "another seed, whose draws differ"
    assert power["chosen"] == {"index": rewards.index(max(rewards)), "reason": "reward"}
    assert "judge" not in power


def test_what_its_needs_ask_for_is_refused_where_there_is_none(pivot_server: Server) -> None:
    wrong: list[tuple[Json, str]] = [
        ({**ALONE, "keep": 2}, "keep='2': the served model's tokenizer has no single token for 'yes'"),
        ({**ALONE, "reward": "unheard"}, "reward='unheard': unknown reward"),
        ({**ALONE, "keep": 5}, "keep=5: more than the 4 samples"),
        ({**ALONE, "equivalence": "unheard"}, "equivalence='unheard'"),
        ({"sampler": "shortlist"}, "reward=None: required"),
    ]
    before = scheduled(pivot_server)
    for custom, message in wrong:
        params = {"custom_params": custom}
        response = post(pivot_server, "/generate", {"text": PROMPT, "sampling_params": params})
        assert response.status_code == httpx.codes.BAD_REQUEST, custom
        assert message in response.json()["error"]["message"]
    assert scheduled(pivot_server) == before


def test_the_pure_parts() -> None:
    assert ShortlistSampler.request.name() == "shortlist"
    assert shortlist([1.0, 3.0, None, 3.0], 3) == [1, 3, 0]
    assert shortlist([None, None], 1) == [0]
    assert most_probable([4, 2, 7], [-2.0, -1.0, -1.0]) == 2
    assert most_probable([4], [None]) is None
