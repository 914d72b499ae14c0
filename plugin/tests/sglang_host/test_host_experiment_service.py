"""What the service of a tokenizer process knows of a request, before any experiment is asked."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import yaml
from enrolled_runs import experiment
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang_power.experiments.catalogue import Catalogue
from sglang_power.experiments.settings import ExperimentSettings
from sglang_power.server.config import ServerConfig
from sglang_power.sglang_host.experiments import service as experiment_service
from sglang_power.sglang_host.experiments.service import ExperimentService
from sglang_power.sglang_host.tokenizer.body import NO_BODY, Body

EXPERIMENT = experiment().model_dump(mode="json", exclude_none=True)


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExperimentService:
    """A service with one experiment."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "e.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    settings = ExperimentSettings(directory=tmp_path / "experiments", log=tmp_path / "log")
    monkeypatch.setenv(settings.unit_key_env, "key")
    server_args = SimpleNamespace(served_model_name="m")
    manager = SimpleNamespace(enable_metrics=False, served_model_name="m", server_args=server_args)
    return ExperimentService(manager, ServerConfig(), settings)


REQUEST = SimpleNamespace(url=SimpleNamespace(path="/generate"), headers={})


@pytest.mark.parametrize(
    ("params", "limit"),
    [
        (None, 128),
        ({}, 128),
        ({"max_new_tokens": 5}, 5),
        ({"max_new_tokens": None}, None),
    ],
)
async def test_how_much_a_request_may_generate(
    service: ExperimentService, params: Any, limit: int | None
) -> None:
    """128 is SGLang's own default; None is what OpenAI's chat route makes of no max_tokens."""
    facts = service.facts_of(GenerateReqInput(text="hi", sampling_params=params), REQUEST, NO_BODY)
    assert facts is not None
    assert facts.max_new_tokens == limit


@pytest.mark.parametrize("temperature", [0, 0.0, 1e-9, 9.9e-7, 1e-6, 1e-3, 0.5, 1.0])
async def test_a_request_is_greedy_where_sglang_decodes_greedily(
    service: ExperimentService, temperature: float
) -> None:
    params = {"temperature": temperature}
    greedy = SamplingParams(**params).top_k == 1
    facts = service.facts_of(GenerateReqInput(text="hi", sampling_params=params), REQUEST, NO_BODY)
    assert facts is not None
    assert facts.excluded == ("greedy" if greedy else None)


async def test_what_names_a_unit(service: ExperimentService) -> None:
    """A header, OpenAI's `user` and its metadata; a body that is no object of those names nobody."""
    obj = GenerateReqInput(text="hi")
    body = Body({"user": "u", "metadata": {"user_id": "m", "sglang_power": "{}"}})
    facts = service.facts_of(obj, REQUEST, body)
    assert facts is not None
    assert (facts.user, facts.metadata["user_id"], facts.excluded) == ("u", "m", None)
    for values in ({}, {"metadata": None}, {"metadata": ["user_id"]}):
        facts = service.facts_of(obj, REQUEST, Body(values))
        assert facts is not None
        assert facts.metadata == {}


async def test_a_watch_that_a_defect_ended_is_told_and_begins_again(
    service: ExperimentService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun, again, told = [], asyncio.Event(), Mock()

    async def watch(catalogue: Catalogue, _on_reload: object, stop: asyncio.Event) -> None:
        begun.append(catalogue)
        if len(begun) == 1:
            raise RuntimeError("nobody thought of it")
        again.set()
        await stop.wait()

    monkeypatch.setattr(experiment_service, "watch", watch)
    monkeypatch.setattr(experiment_service, "WATCH_AGAIN_S", 0.0)
    monkeypatch.setattr(service.counters, "reload_problems", told)
    for _ in range(2):
        assert service.facts_of(GenerateReqInput(text="hi"), REQUEST, NO_BODY) is not None
    async with asyncio.timeout(20):
        await again.wait()
    assert begun[0] is begun[1]
    assert len(begun) == 2
    assert "nobody thought of it" in caplog.text
    told.assert_called_with(1)


async def test_the_service_tells_the_last_edit_that_it_did_not_take(service: ExperimentService) -> None:
    path = service.settings.directory / "e.yaml"
    assert service.report() == {"experiments": {"e": True}, "draining": [], "rejected_edit": None}
    path.write_text(yaml.safe_dump({**EXPERIMENT, "arms": []}))
    service._take_over(service._catalogue.reload())
    told = service.report()
    assert told["experiments"] == {"e": True}, "the last good file stays in force"
    assert told["rejected_edit"]["problems"][0].startswith(f"{path}, line ")
    assert "field 'arms'" in told["rejected_edit"]["problems"][0]
    assert told["rejected_edit"]["corrected"] is False
    path.write_text(yaml.safe_dump({**EXPERIMENT, "kill": True}))
    service._take_over(service._catalogue.reload())
    assert service.report()["experiments"] == {"e": False}
    assert service.report()["rejected_edit"] == {**told["rejected_edit"], "corrected": True}


async def test_edits_are_told_by_what_they_do_to_the_data(
    service: ExperimentService, caplog: pytest.LogCaptureFixture
) -> None:
    path = service.settings.directory / "e.yaml"

    def edit(**fields: object) -> list[str]:
        caplog.clear()
        path.write_text(yaml.safe_dump({**EXPERIMENT, **fields}))
        service._take_over(service._catalogue.reload())
        return [record.message for record in caplog.records if record.levelname == "WARNING"]

    assert edit(owner="another") == []
    assert edit(drain=True) == []
    assert (service.report()["experiments"], service.report()["draining"]) == ({"e": True}, ["e"])
    (warning,) = edit(on_error="default_sampler")
    assert warning.startswith(
        "experiment e: a new version of its file; what was logged so far does not count"
    )
