"""Whoever cannot be enrolled is served as without the experiment."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from enrolled_runs import DEFAULT, MANAGER, STOP, StubService, answer, experiment, replay
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang_power.experiments.catalogue import Loaded
from sglang_power.experiments.enrolling import Enrolled, Facts
from sglang_power.experiments.model import Experiment
from sglang_power.experiments.state import State
from sglang_power.experiments.versions import config_hash
from sglang_power.server.config import ServerConfig
from sglang_power.sglang_host.experiments.enrolled import answers
from sglang_power.sglang_host.tokenizer.body import NO_BODY
from sglang_power.sglang_host.tokenizer.host import Host
from sglang_power.sglang_host.tokenizer.plan import PlainPlan, Plan


class JoiningService(StubService):
    """A service whose experiment has every request; its enrolment lines may be impossible to write."""

    def __init__(self, joined: bool, defect: Exception | None = None) -> None:
        super().__init__()
        self._joined, self._defect = joined, defect
        self.refused: list[tuple[str, str]] = []
        self.counters = SimpleNamespace(not_enrolled=self._refuse)

    def _refuse(self, each: Experiment, reason: str) -> None:
        self.refused.append((each.name, reason))

    async def enrol(self, *_: object) -> tuple[Enrolled, Plan] | None:
        each = experiment()
        place = Enrolled(Loaded(each, config_hash(each), State()), each.arm("plain"), "unit")
        return (place, PlainPlan()) if self._joined else None

    def enrolled(self, *line: object) -> None:
        if self._defect is not None:
            raise self._defect
        super().enrolled(*line)


async def served(service: Any) -> list[Any]:
    """All responses to one request."""
    obj = GenerateReqInput(text="prompt", sampling_params={})
    host = Host(MANAGER, replay(answer("ab", STOP)), obj, None, ServerConfig())
    facts = Facts("m", "generate", False, 8, {}, "u", {}, None)
    return [response async for response in answers(service, host, facts, NO_BODY, [DEFAULT])]


async def test_who_joins_is_enrolled_and_told_so() -> None:
    service = JoiningService(joined=True)
    (response,) = await served(service)
    assert response["meta_info"]["power"]["exposure_id"] == service.lines[0].exposure_id
    assert service.refused == []


@pytest.mark.parametrize("defect", [None, TypeError("nobody thought of it"), ValueError("nor of this")])
async def test_who_does_not_gets_the_same_answer(
    defect: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    service = JoiningService(joined=defect is not None, defect=defect)
    (response,) = await served(service)
    assert response["text"] == "ab"
    assert "exposure_id" not in response["meta_info"].get("power", {})
    assert service.lines == []
    assert service.refused == ([] if defect is None else [("e", "internal")])
    assert str(defect or "") in caplog.text
