"""SGLang's own routes: its application in front of a stand-in of its manager. What reaches the plugin?

The bodies are real, so is everything that SGLang does to them; nothing is generated.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from route_bodies import (
    CHAT,
    COMPLETIONS,
    GENERATE,
    INVOCATIONS,
    MESSAGES,
    OLLAMA,
    OLLAMA_CHAT,
    RESPONSES,
    VERTEX,
    Json,
    Manager,
    body_for,
    send,
)
from sglang.srt.entrypoints import http_server
from sglang.srt.entrypoints.ollama.serving import OllamaServing
from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest, ResponsesRequest
from sglang.srt.entrypoints.openai.serving_completions import OpenAIServingCompletion
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang_power.algorithms.penalties import Penalties
from sglang_power.errors import RequestError
from sglang_power.request import PowerRequest
from sglang_power.sglang_host import entry
from sglang_power.sglang_host.tokenizer.answer_plan import AnswerPlan
from sglang_power.sglang_host.tokenizer.plan import PlainPlan, Plan

pytestmark = pytest.mark.filterwarnings("ignore::fastapi.exceptions.FastAPIDeprecationWarning")


GENERATION_CONFIG = {"temperature": 0.6, "top_p": 0.5, "top_k": 5, "repetition_penalty": 1.1}
"""Of a model; SGLang fills it in where the client says nothing."""


class OpenAI:
    """Its OpenAI servings: from the parsed body to sampling parameters, by SGLang's own methods."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    async def handle_request(self, request: Any, raw_request: Any) -> Json:
        return await self._ask(params_of(request), raw_request)

    async def create_responses(self, request: ResponsesRequest, raw_request: Any) -> Json:
        return await self._ask(params_of(request), raw_request)

    async def handle_messages(self, request: Any, raw_request: Any) -> Json:
        fields = {name: getattr(request, name) for name in ("max_tokens", "temperature", "top_p")}
        named = {name: value for name, value in fields.items() if value is not None}
        chat = ChatCompletionRequest(messages=[], **named)
        return await self._ask(params_of(chat), raw_request)

    async def _ask(self, params: Json, raw_request: Any) -> Json:
        obj = GenerateReqInput(text="a", sampling_params=params)
        return await anext(aiter(self._manager.generate_request(obj, raw_request)))


def params_of(request: Any) -> Json:
    """As the servings call SGLang's conversion."""
    built: Json
    if isinstance(request, ResponsesRequest):
        built = request.to_sampling_params(None, GENERATION_CONFIG)
    elif isinstance(request, ChatCompletionRequest):
        built = request.to_sampling_params(stop=[], model_generation_config=GENERATION_CONFIG)
    else:
        assert isinstance(request, CompletionRequest)
        built = OpenAIServingCompletion._build_sampling_params(SimpleNamespace(), request)
    return built


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Manager:
    """A manager behind SGLang's application."""
    made = Manager()
    monkeypatch.setattr(http_server, "_global_state", SimpleNamespace(tokenizer_manager=made))
    contract = functools.partial(entry.generate_contract_error, http_server.generate_contract_error)
    monkeypatch.setattr(http_server, "generate_contract_error", contract)
    serving = OpenAI(made)
    for name in ("completion", "chat", "responses"):
        monkeypatch.setattr(http_server.app.state, f"openai_serving_{name}", serving, raising=False)
    monkeypatch.setattr(http_server.app.state, "anthropic_serving", serving, raising=False)
    monkeypatch.setattr(http_server.app.state, "ollama_serving", OllamaServing(made), raising=False)
    return made


ROUTES = (GENERATE, VERTEX, CHAT, COMPLETIONS, INVOCATIONS, RESPONSES, MESSAGES, OLLAMA_CHAT, OLLAMA)


async def plan_of(manager: Manager, path: str, sampling: Json, top: Json) -> Plan:
    """The plan that SGLang's route arrives at."""
    response = await send(path, body_for(path, sampling, top))
    assert response.status_code == httpx.codes.OK, response.text
    (plan,) = manager.plans
    return plan


@pytest.mark.parametrize("path", ROUTES)
async def test_a_sampler_at_the_top_level_is_read_with_its_parameters(manager: Manager, path: str) -> None:
    plan = await plan_of(manager, path, {}, {"sampler": "power", "alpha": 2.0, "steps": 3})
    assert isinstance(plan, AnswerPlan)
    assert (plan.request.alpha, plan.request.steps) == (2.0, 3)
    assert plan.request.top_p is None, "the model's generation config is nobody's word"


@pytest.mark.parametrize("path", ROUTES)
async def test_custom_params_at_the_top_level_are_read(manager: Manager, path: str) -> None:
    plan = await plan_of(manager, path, {}, {"custom_params": {"sampler": "power", "alpha": 2.0}})
    assert isinstance(plan, AnswerPlan)
    assert plan.request.alpha == 2.0


@pytest.mark.parametrize("path", ROUTES)
async def test_a_request_for_nothing_is_plain(manager: Manager, path: str) -> None:
    """With the fields that other gateways read."""
    foreign = {"alpha": 2.0, "policy": "theirs", "metadata": {"a": "b"}}
    assert await plan_of(manager, path, {}, foreign) == PlainPlan()


SEED = {GENERATE: "sampling_seed", VERTEX: "sampling_seed"}


@pytest.mark.parametrize("path", ROUTES)
async def test_what_the_client_names_counts_on_every_route(manager: Manager, path: str) -> None:
    asked = {"sampler": "power", "on_temperature": "alpha"}
    sampling: Json = {"temperature": 0.5, "top_p": 0.9}
    if path != MESSAGES:  # Anthropic's API has no seed
        sampling[SEED.get(path, "seed")] = 7
    plan = await plan_of(manager, path, sampling, asked)
    assert isinstance(plan, AnswerPlan)
    assert (plan.request.alpha, plan.request.top_p) == (2.0, 0.9)
    assert plan.request.seed == (None if path == MESSAGES else 7)
    assert "seed" not in manager.params, "SGLang's own parameters have no such field"


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.usefixtures("manager")
async def test_what_power_refuses_is_refused_on_every_route(path: str) -> None:
    body = body_for(path, {"temperature": 0.5}, {"sampler": "power"})
    try:
        response = await send(path, body)
    except RequestError as error:  # SGLang's servings, for which OpenAI stands here, make a 400 of it
        assert path not in (GENERATE, VERTEX, OLLAMA, OLLAMA_CHAT)
        told = str(error)
    else:
        assert response.status_code == httpx.codes.BAD_REQUEST
        told = response.text
    assert "temperature=0.5" in told


@pytest.mark.parametrize("path", ROUTES)
async def test_penalties_that_the_client_names_are_the_base_laws_on_every_route(
    manager: Manager, path: str
) -> None:
    """That of the model's generation config is not, and Anthropic's API has none."""
    named = {} if path == MESSAGES else {"frequency_penalty": 0.5}
    plan = await plan_of(manager, path, named, {"sampler": "power"})
    assert isinstance(plan, AnswerPlan)
    assert plan.penalties == (Penalties(frequency=0.5) if named else None)


@pytest.mark.parametrize("path", [OLLAMA, OLLAMA_CHAT])
async def test_ollamas_options_hold_samplers_and_penalties_of_its_names(manager: Manager, path: str) -> None:
    plan = await plan_of(manager, path, {"sampler": "power", "alpha": 2.0, "min_p": 0.1, "seed": 3}, {})
    assert isinstance(plan, AnswerPlan)
    assert isinstance(plan.request, PowerRequest)
    assert (plan.request.alpha, plan.request.min_p, plan.request.seed) == (2.0, 0.1, 3)
    named = await plan_of(manager, path, {"sampler": "power", "repeat_penalty": 1.2}, {})
    assert isinstance(named, AnswerPlan)
    assert named.penalties == Penalties(repetition=1.2)
    assert "repetition_penalty" not in named.neutralised


async def test_responses_with_a_text_format_take_the_clients_words_only(manager: Manager) -> None:
    """`text` is no prompt there."""
    top = {"text": {"format": {"type": "text"}}, "sampler": "power"}
    plan = await plan_of(manager, RESPONSES, {}, top)
    assert isinstance(plan, AnswerPlan)
    assert plan.neutralised == ["repetition_penalty", "temperature", "top_k", "top_p"]


async def test_a_nested_object_survives_everywhere(manager: Manager) -> None:
    for path in ROUTES:
        plan = await plan_of(manager, path, {}, {"sglang_power": {"sampler": "power", "alpha": 3.0}})
        assert isinstance(plan, AnswerPlan), path
        assert plan.request.alpha == 3.0


async def test_null_is_absent_in_sglangs_own_parameters(manager: Manager) -> None:
    """SGLang would refuse the name."""
    response = await send(GENERATE, body_for(GENERATE, {"sampler": None, "preset": None}, {}))
    assert response.status_code == httpx.codes.OK, response.text
    assert manager.params == {"max_new_tokens": 16}
    unknown = await send(GENERATE, body_for(GENERATE, {"steps": 3}, {}))
    assert unknown.status_code == httpx.codes.BAD_REQUEST, "as SGLang answers to names that it does not know"


async def test_a_stream_of_generate_is_refused_before_it_begins(manager: Manager) -> None:
    """With 400; inside of the stream it would be a 200."""
    for top in ({"sampler": "power"}, {"custom_params": {"alpha": 2.0}}, {"sglang_power": "{"}):
        body = body_for(GENERATE, {"temperature": 0.5}, {"stream": True, **top})
        assert (await send(GENERATE, body)).status_code == httpx.codes.BAD_REQUEST
    assert manager.plans == []
    ignoring = {"stream": True, "sampler": "power", "on_temperature": "ignore", "alpha": 2.0}
    response = await send(GENERATE, body_for(GENERATE, {"temperature": 0.5}, ignoring))
    assert response.status_code == httpx.codes.OK
    (plan,) = manager.plans
    assert isinstance(plan, AnswerPlan)
    assert plan.request.alpha == 2.0
