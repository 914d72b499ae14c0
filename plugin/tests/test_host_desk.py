"""What the desk of a tokenizer process knows of a request, before any experiment is asked."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang_power.experiments.settings import ExperimentSettings
from sglang_power.serving.config import ServerConfig
from sglang_power.sglang_host.experiment_desk import Desk

EXPERIMENT = {
    "name": "e",
    "owner": "o",
    "hypothesis": "h",
    "unit": {"field": "user"},
    "arms": [
        {"name": "plain", "sampler": {"sampler": "none"}, "weight": 5000, "control": "plain"},
        {"name": "power", "sampler": {"sampler": "power"}, "weight": 5000},
    ],
    "metrics": {"m": {"source": "outcome", "outcomes": ["error"]}},
    "primary": {"metric": "m", "min_effect": 0.0},
}


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A desk with one experiment."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "e.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    settings = ExperimentSettings(directory=tmp_path / "experiments", log=tmp_path / "log")
    monkeypatch.setenv(settings.unit_key_env, "key")
    server_args = SimpleNamespace(served_model_name="m")
    manager = SimpleNamespace(enable_metrics=False, served_model_name="m", server_args=server_args)
    return Desk(manager, ServerConfig(), settings)


@pytest.mark.parametrize(
    ("params", "limit"),
    [
        (None, 128),
        ({}, 128),
        ({"max_new_tokens": 5}, 5),
        ({"max_new_tokens": None}, None),
    ],
)
async def test_how_much_a_request_may_generate(desk: Desk, params: Any, limit: int | None) -> None:
    """128 is SGLang's own default; None is what OpenAI's chat route makes of no max_tokens."""
    request = SimpleNamespace(url=SimpleNamespace(path="/generate"), headers={})
    facts = desk.facts_of(GenerateReqInput(text="hi", sampling_params=params), request, {})
    assert facts is not None
    assert facts.max_new_tokens == limit
