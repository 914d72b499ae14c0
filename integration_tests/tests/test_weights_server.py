"""Weights that change under a chain, pauses, and thoughts in answers: on a server of their own."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file, save_file

from integration_tests.helpers.clients import (
    LONG,
    eventually,
    generate,
    post,
    power_of,
    running,
    scheduled,
    standstill,
)
from integration_tests.server import PIVOT_MODEL, Server

pytestmark = pytest.mark.server

Json = dict[str, Any]

LASTING = {"max_new_tokens": 96, "ignore_eos": True, "custom_params": LONG}


# --- weights ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the pivot model whose last layer is scaled."""
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    shutil.copytree(PIVOT_MODEL, folder)
    weights = load_file(folder / "model.safetensors")
    name = "lm_head.weight" if "lm_head.weight" in weights else "model.embed_tokens.weight"
    weights[name] = weights[name] * 0.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def update(server: Server, folder: Path, **fields: Any) -> None:
    answer = post(server, "/update_weights_from_disk", {"model_path": str(folder), **fields})
    assert answer.status_code == httpx.codes.OK, answer.text
    assert answer.json()["success"]


def failed(response: httpx.Response) -> str:
    """The message of a request that ended by an update."""
    assert response.status_code == httpx.codes.SERVICE_UNAVAILABLE, response.text
    message = str(response.json())
    assert "the weights changed during the chain" in message
    return message


def lasting(server: Server) -> httpx.Response:
    return post(server, "/generate", {"text": "R7+3*2-8:", "sampling_params": LASTING})


@pytest.mark.parametrize("version", ["other", None])
def test_an_update_of_the_weights_ends_a_chain(
    changing_server: Server, other_weights: Path, version: str | None
) -> None:
    """With a version and without one, which SGLang's answers do not tell from the weights before."""
    before = scheduled(changing_server)
    with running(functools.partial(lasting, changing_server)) as call:
        eventually(lambda: scheduled(changing_server) > before + 5, "the chain runs")
        update(changing_server, other_weights, **({} if version is None else {"weight_version": version}))
        message = failed(call.result())
    assert "without a version" in message if version is None else "to other" in message
    answer = generate(changing_server, steps=2)
    assert power_of(answer)["stopped_by"] == "completed", "the next request is served by the new weights"
    update(changing_server, PIVOT_MODEL, weight_version="default")


def test_an_update_in_a_pause_ends_the_chain_whose_child_it_met(
    changing_server: Server, other_weights: Path
) -> None:
    """SGLang would go on with the rest of the child's tokens by other weights."""
    before = scheduled(changing_server)
    with running(functools.partial(lasting, changing_server)) as call:
        eventually(lambda: scheduled(changing_server) > before + 5, "the chain runs")
        with standstill(changing_server):
            update(changing_server, other_weights, flush_cache=False)
        failed(call.result())
    update(changing_server, PIVOT_MODEL, weight_version="default")


def test_a_pause_changes_no_answer(changing_server: Server) -> None:
    expected = generate(changing_server, seed=5, steps=20)
    before = scheduled(changing_server)
    with running(functools.partial(generate, changing_server, seed=5, steps=20)) as call:
        eventually(lambda: scheduled(changing_server) > before + 2, "the chain runs")
        with standstill(changing_server):
            assert not call.done()
        assert call.result()["output_ids"] == expected["output_ids"]


# --- answers with reasoning ---------------------------------------------------------------------------


def test_reasoning_is_taken_out_of_answers_as_out_of_sglangs_own(changing_server: Server) -> None:
    """`--reasoning-parser qwen3`, on answers that begin with a forced thought."""
    forked = {"sampler": "cot", "k": 2, "fork_at": "after_prefix", "fork_prefix": "<think>ab</think>cd"}
    body: Json = {
        "model": "changing",
        "messages": [{"role": "user", "content": "R7+3*2-8:"}],
        "max_tokens": 40,
        "custom_params": {**forked, "seed": 1},
    }
    (choice,) = post(changing_server, "/v1/chat/completions", body).json()["choices"]
    assert choice["message"]["reasoning_content"] == "ab"
    assert choice["message"]["content"].startswith("cd")
    whole = post(changing_server, "/v1/chat/completions", {**body, "separate_reasoning": False}).json()
    assert whole["choices"][0]["message"]["content"].startswith("<think>ab</think>cd")
