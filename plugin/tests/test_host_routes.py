"""SGLang's own routes: its application in front of a stand-in of its manager. What reaches the plugin?

The bodies are real, so is everything that SGLang does to them; nothing is generated.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from sglang.srt.entrypoints import http_server
from sglang.srt.entrypoints.ollama.serving import OllamaServing
from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest, ResponsesRequest
from sglang.srt.entrypoints.openai.serving_completions import OpenAIServingCompletion
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang_power.errors import RequestError
from sglang_power.request import PowerRequest
from sglang_power.server.config import ServerConfig
from sglang_power.sglang_host import entry
from sglang_power.sglang_host.entry import _planned, _strip_own_fields
from sglang_power.sglang_host.tokenizer.answer_plan import AnswerPlan
from sglang_power.sglang_host.tokenizer.body import body_of
from sglang_power.sglang_host.tokenizer.plan import PlainPlan, Plan
from test_host_tokenizer_side import Letters

pytestmark = pytest.mark.filterwarnings("ignore::fastapi.exceptions.FastAPIDeprecationWarning")

Json = dict[str, Any]

GENERATION_CONFIG = {"temperature": 0.6, "top_p": 0.5, "top_k": 5, "repetition_penalty": 1.1}
"""Of a model; SGLang fills it in where the client says nothing."""


class ChatLetters(Letters):
    def apply_chat_template(self, messages: list[Json], **_: Any) -> list[int]:
        return self.encode("".join(message["content"] for message in messages))


class Manager:
    """SGLang's TokenizerManager as far as routes and plans look; keeps what it is asked."""

    def __init__(self) -> None:
        self.tokenizer = ChatLetters()
        self.model_config = SimpleNamespace(vocab_size=100, hf_eos_token_id=[0])
        self.server_args = SimpleNamespace()
        self.served_model_name = "m"
        self.context_len, self.num_reserved_tokens = 4096, 0
        self.plans: list[Plan] = []
        self.params: Any = None

    async def generate_request(self, obj: GenerateReqInput, request: Any) -> AsyncIterator[Json]:
        body = body_of(request)
        self.plans = _planned(self, obj, body, ServerConfig())
        _strip_own_fields(obj, body, served=not all(isinstance(plan, PlainPlan) for plan in self.plans))
        self.params = obj.sampling_params
        yield {"text": "b", "meta_info": {"prompt_tokens": 1, "completion_tokens": 1, "finish_reason": {}}}

    def create_abort_task(self, _obj: Any) -> None:
        return None


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


GENERATE, VERTEX = "/generate", "/vertex_generate"
CHAT, COMPLETIONS, INVOCATIONS = "/v1/chat/completions", "/v1/completions", "/invocations"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
OLLAMA_CHAT, OLLAMA = "/api/chat", "/api/generate"
ROUTES = (GENERATE, VERTEX, CHAT, COMPLETIONS, INVOCATIONS, RESPONSES, MESSAGES, OLLAMA_CHAT, OLLAMA)

HELLO = [{"role": "user", "content": "hello"}]


def body_for(path: str, sampling: Json, top: Json) -> Json:
    """A body of a route: SGLang's sampling fields where they stand there, and more at its top level."""
    if path == GENERATE:
        return {"text": "a", "sampling_params": {"max_new_tokens": 16, **sampling}, **top}
    if path == VERTEX:
        parameters = {"sampling_params": {"max_new_tokens": 16, **sampling}}
        return {"instances": [{"text": "a"}], "parameters": parameters, **top}
    if path in (OLLAMA, OLLAMA_CHAT):
        asked: Json = {"messages": HELLO} if path == OLLAMA_CHAT else {"prompt": "a"}
        return {"model": "m", "stream": False, **asked, "options": {"num_predict": 16, **sampling}, **top}
    asked = {CHAT: {"messages": HELLO, "max_tokens": 16}, COMPLETIONS: {"prompt": "a", "max_tokens": 16}}.get(
        path, {"messages": HELLO, "max_tokens": 16}
    )
    if path == RESPONSES:
        asked = {"input": "a", "max_output_tokens": 18}
    return {"model": "m", **asked, **sampling, **top}


async def send(path: str, body: Json) -> httpx.Response:
    """One request to SGLang's application; what a handler does not catch is raised."""
    transport = httpx.ASGITransport(app=http_server.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://sglang") as client:
        return await client.post(path, json=body)


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
@pytest.mark.parametrize("field", ["temperature", "frequency_penalty"])
@pytest.mark.usefixtures("manager")
async def test_what_power_refuses_is_refused_on_every_route(path: str, field: str) -> None:
    if path == MESSAGES and field == "frequency_penalty":
        path = OLLAMA  # Anthropic's API has none
    body = body_for(path, {field: 0.5}, {"sampler": "power"})
    try:
        response = await send(path, body)
    except RequestError as error:  # SGLang's servings, for which OpenAI stands here, make a 400 of it
        assert path not in (GENERATE, VERTEX, OLLAMA, OLLAMA_CHAT)
        told = str(error)
    else:
        assert response.status_code == httpx.codes.BAD_REQUEST
        told = response.text
    assert f"{field}=0.5" in told


@pytest.mark.parametrize("path", [OLLAMA, OLLAMA_CHAT])
async def test_ollamas_options_hold_samplers_and_penalties_of_its_names(manager: Manager, path: str) -> None:
    plan = await plan_of(manager, path, {"sampler": "power", "alpha": 2.0, "min_p": 0.1, "seed": 3}, {})
    assert isinstance(plan, AnswerPlan)
    assert isinstance(plan.request, PowerRequest)
    assert (plan.request.alpha, plan.request.min_p, plan.request.seed) == (2.0, 0.1, 3)
    refused = await send(path, body_for(path, {"sampler": "power", "repeat_penalty": 1.2}, {}))
    assert refused.status_code == httpx.codes.BAD_REQUEST
    assert "repetition_penalty=1.2" in refused.text


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
