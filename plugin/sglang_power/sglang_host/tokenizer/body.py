"""What a client sent: the JSON body and the route it came by, which says where the sampling fields stand.

SGLang completes sampling parameters from the model's generation config and from defaults of its own before
anybody sees them, differently on every route. So what a client named is read from its body:

| route | the client's sampling fields |
|---|---|
| /generate, /vertex_generate, Engine, native gRPC | `sampling_params`, which SGLang hands on untouched |
| completions, chat, /invocations, /v1/responses, /v1/messages | the top level |
| Ollama's /api/chat and /api/generate | `options`, some of them under Ollama's names |
| any other | not known: whatever SGLang hands on counts as named |

Facts of SGLang 0.5.23. Tokenizer process.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Fields = dict[str, Any]

Where = Literal["sampling_params", "top_level", "options"]

OLLAMA_NAMES = {
    **{name: name for name in ("temperature", "top_p", "top_k", "min_p", "seed", "stop")},
    **{name: name for name in ("presence_penalty", "frequency_penalty")},
    "repeat_penalty": "repetition_penalty",
}
"""Ollama's option -> SGLang's field. SGLang drops `min_p` and `repeat_penalty` on this route."""


@dataclass(frozen=True)
class Route:
    """One of SGLang's routes.

    Args:
        fields: where the client's sampling fields stand.
        takes_custom_params: whether SGLang hands the body's `custom_params` on; else nobody reads them.
        shows_reports: whether its answers have room for `meta_info.power`.
        calls_tools: whether SGLang reads calls of the body's `tools` off the text of our answers.
    """

    fields: Where = "sampling_params"
    takes_custom_params: bool = False
    shows_reports: bool = True
    calls_tools: bool = False


NATIVE = Route()


@functools.cache
def routes() -> dict[str, Route]:
    """Return what is known of SGLang's routes; three of the paths can be set in the environment."""
    ollama = Route("options", shows_reports=False)
    events = Route("top_level", shows_reports=False)
    return {
        "/generate": NATIVE,
        os.environ.get("AIP_PREDICT_ROUTE", "/vertex_generate"): NATIVE,
        "/v1/completions": Route("top_level", takes_custom_params=True),
        "/v1/chat/completions": Route("top_level", takes_custom_params=True, calls_tools=True),
        "/invocations": Route("top_level", takes_custom_params=True),
        "/v1/responses": events,
        "/v1/messages": events,
        os.environ.get("SGLANG_OLLAMA_CHAT_ROUTE", "/api/chat"): ollama,
        os.environ.get("SGLANG_OLLAMA_GENERATE_ROUTE", "/api/generate"): ollama,
    }


@dataclass(frozen=True)
class Body:
    """A JSON object that a client sent.

    Args:
        values: the object.
        route: how it came.
    """

    values: Fields
    route: Route = NATIVE

    @classmethod
    def at(cls, path: str, values: Fields) -> Body:
        """Return a body that was sent to a path."""
        return cls(values, routes().get(path, NATIVE))

    @property
    def is_ollamas(self) -> bool:
        """Whether it came by one of Ollama's routes."""
        return self.route.fields == "options"

    @property
    def options(self) -> Fields:
        """Return Ollama's options; empty on other routes."""
        options = self.values.get("options") if self.is_ollamas else None
        return options if isinstance(options, dict) else {}

    @property
    def metadata(self) -> Fields:
        """Return OpenAI's `metadata`; empty where there is none, or no object."""
        metadata = self.values.get("metadata")
        return metadata if isinstance(metadata, dict) else {}

    @property
    def tools(self) -> list[Any]:
        """Return the tools that an answer may call; empty where it may call none."""
        tools = self.values.get("tools")
        if not isinstance(tools, list) or self.values.get("tool_choice") == "none":
            return []
        return tools

    def named(self, params: Mapping[str, Any]) -> Fields:
        """Return the sampling fields that the client wrote, under SGLang's names; null is not written.

        Args:
            params: what SGLang made of them for one prompt.
        """
        source: Mapping[str, Any] = params
        if self.route.fields == "top_level":
            source = self.values
        elif self.route.fields == "options":
            source = {OLLAMA_NAMES[name]: self.options.get(name) for name in OLLAMA_NAMES}
        return {key: value for key, value in source.items() if value is not None}


NO_BODY = Body({})
"""Of an Engine's request, and of others that came by no HTTP."""


def body_of(request: Any) -> Body:
    """Return the JSON body of a Starlette request that the host has already read, without awaiting."""
    values = getattr(request, "_json", None)
    if values is None and getattr(request, "_body", None):
        try:
            values = json.loads(request._body)
        except ValueError:
            return NO_BODY
    return Body.at(_path_of(request), values) if isinstance(values, dict) else NO_BODY


def _path_of(request: Any) -> str:
    """Return the path within the application, as SGLang's own middleware has it."""
    root = getattr(request, "scope", {}).get("root_path", "")
    return str(request.url.path).removeprefix(root)
