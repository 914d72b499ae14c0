"""Routes, the bodies that they take, and a manager behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
from letters import Letters
from sglang.srt.entrypoints import http_server
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang_power.server.config import ServerConfig
from sglang_power.sglang_host.entry import _planned, _strip_own_fields
from sglang_power.sglang_host.tokenizer.body import body_of
from sglang_power.sglang_host.tokenizer.plan import PlainPlan, Plan

Json = dict[str, Any]


class ChatLetters(Letters):
    def apply_chat_template(self, messages: list[Json], **_: Any) -> list[int]:
        return self.encode("".join(message["content"] for message in messages))


class Manager:
    """SGLang's TokenizerManager as far as routes and plans look; keeps what it is asked."""

    def __init__(self) -> None:
        self.tokenizer = ChatLetters()
        self.model_config = SimpleNamespace(vocab_size=100, hf_eos_token_id=[0])
        self.server_args = SimpleNamespace(weight_version="default")
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


GENERATE, VERTEX = "/generate", "/vertex_generate"


CHAT, COMPLETIONS, INVOCATIONS = "/v1/chat/completions", "/v1/completions", "/invocations"


RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"


OLLAMA_CHAT, OLLAMA = "/api/chat", "/api/generate"


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
