"""Weights that change under a chain, and adapters: no answer mixes two laws.

One server loads other weights, which its last tests leave there; another one has two LoRA adapters of the law
model, whose every answer is enumerated from weights that have the adapter merged.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sglang_power.request import parse_power
from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

from integration_tests import server
from integration_tests.helpers import preloaded
from integration_tests.helpers.clients import (
    LONG,
    QUICK,
    eventually,
    generate,
    post,
    power_of,
    raw_generate,
    running,
    scheduled,
    standstill,
)
from integration_tests.law_model import HORIZON, PROMPT, AnswerTree, enumerated
from integration_tests.server import PIVOT_MODEL, Server, ServerSpec

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


# --- adapters -----------------------------------------------------------------------------------------

RANK, ALPHA = 2, 4
PROJECTIONS = ("q_proj", "v_proj")
NAMES = ("one", "two")


def write_adapter(folder: Path, base: Qwen2ForCausalLM, seed: int) -> dict[str, torch.Tensor]:
    """Write a LoRA adapter in peft's form, and return what it adds to the weights."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    tensors: dict[str, torch.Tensor] = {}
    added: dict[str, torch.Tensor] = {}
    for name, weight in base.named_parameters():
        if not name.endswith(tuple(f"{projection}.weight" for projection in PROJECTIONS)):
            continue
        rows, columns = weight.shape
        a, b = (
            torch.from_numpy(rng.standard_normal(shape)).float() for shape in ((RANK, columns), (rows, RANK))
        )
        module = "base_model.model." + name.removesuffix(".weight")
        tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
        added[name] = (b @ a) * (ALPHA / RANK)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": list(PROJECTIONS)}
    more = {"base_model_name_or_path": "", "bias": "none", "lora_dropout": 0.0, "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, **more}))
    return added


@pytest.fixture(scope="module")
def adapters(law_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, AnswerTree]]:
    """Two adapters, and all answers of the model with each of them."""
    folder = tmp_path_factory.mktemp("adapters")
    prompt = Qwen2Tokenizer.from_pretrained(law_model).encode(PROMPT)
    made = {}
    for seed, name in enumerate(NAMES):
        model = Qwen2ForCausalLM.from_pretrained(law_model).eval()
        added = write_adapter(folder / name, model, seed)
        with torch.no_grad():
            for parameter, delta in added.items():
                model.get_parameter(parameter).add_(delta)
        made[name] = folder / name, AnswerTree(enumerated(model, prompt, HORIZON))
    return made


@pytest.fixture(scope="module")
def adapted_server(
    logs: Path, law_model: Path, adapters: dict[str, tuple[Path, AnswerTree]]
) -> Iterator[Server]:
    """The law model with both adapters."""
    paths = [f"{name}={folder}" for name, (folder, _) in adapters.items()]
    adapted = ["--enable-lora", "--lora-paths", *paths, "--lora-backend", "torch_native"]
    spec = ServerSpec(law_model, "adapted", ["--page-size", "1", *adapted])
    with server.running(spec, logs, preloaded.fork) as one:
        yield one


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "custom",
    [{**QUICK, "block_size": 2, "steps": 8}, {"sampler": "smc", "particles": 4}, {"sampler": "perfect"}],
    ids=lambda custom: str(custom["sampler"]),
)
def test_children_have_the_adapter_of_their_request(
    adapted_server: Server, adapters: dict[str, tuple[Path, AnswerTree]], name: str, custom: Json
) -> None:
    """log p of each answer, token by token, is that of the merged weights, and of no others."""
    tree, other = adapters[name][1], adapters[NAMES[1 - NAMES.index(name)]][1]
    for seed in range(4):
        params = {"max_new_tokens": HORIZON, "custom_params": {**custom, "alpha": 1.5, "seed": seed}}
        answer = raw_generate(
            adapted_server, PROMPT, sampling_params=params, lora_path=name, return_logprob=True
        )
        ids = tuple(answer["output_ids"])
        log_p = sum(value for value, _, _ in answer["meta_info"]["output_token_logprobs"])
        assert log_p == pytest.approx(tree.log_p(ids), abs=1e-3)
        assert log_p != pytest.approx(other.log_p(ids), abs=1e-2)


def test_the_adapters_tell_laws_apart(adapters: dict[str, tuple[Path, AnswerTree]]) -> None:
    config = parse_power({"alpha": 1.5}).mh_config(HORIZON)
    one, two = (tree.target(config) for _, tree in adapters.values())
    assert 0.5 * np.abs(one - two).sum() > 0.1


def test_an_adapter_that_is_not_there_is_refused(adapted_server: Server) -> None:
    body = {"text": PROMPT, "lora_path": "three", "sampling_params": {"custom_params": QUICK}}
    answer = post(adapted_server, "/generate", body)
    assert answer.status_code == httpx.codes.BAD_REQUEST
    assert "three" in answer.text
