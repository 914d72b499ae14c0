"""A server for tests of the frontend: bytes are tokens, and answers come from a script. No network."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
from sglang_power.frontend.client import Client
from sglang_power.gateways import INFO_ROUTE
from sglang_power.routes import STATUS_ROUTE

EOS = 256

Script = Callable[[dict[str, Any]], Any]
"""A /generate body -> the response, or an HTTP status and a message."""


def text_of(ids: list[int] | tuple[int, ...]) -> str:
    """As byte-level tokenizers decode: special tokens have no text, pieces of characters become U+FFFD."""
    return bytes(token for token in ids if token < EOS).decode(errors="replace")


def spelled(ids: list[int]) -> str:
    """The same with special tokens, by their numbers."""
    return b"".join(b"<%d>" % token if token >= EOS else bytes([token]) for token in ids).decode(
        errors="replace"
    )


def answer(ids: list[int], finish: dict[str, Any] | None = None, **meta: Any) -> dict[str, Any]:
    """A response of /generate."""
    reason = {"type": "length", "length": len(ids)} if finish is None else finish
    return {"text": text_of(ids), "output_ids": ids, "meta_info": {"finish_reason": reason, **meta}}


class ScriptedServer:
    """What a Client talks to.

    Args:
        script: of /generate; prompts that are only cached do not reach it.
        plugin: whether the status route is there.
        info: what /get_server_info answers.

    Attributes:
        requests: path and body of everything that was asked, in order.
        headers, timeouts: of the same requests.
    """

    def __init__(
        self, script: Script | None = None, plugin: bool = True, info: dict[str, Any] | None = None
    ) -> None:
        self._script, self._plugin, self._info = script, plugin, info or {"version": "0.5.23"}
        self.requests: list[tuple[str, Any]] = []
        self.headers: list[httpx.Headers] = []
        self.timeouts: list[dict[str, float | None]] = []

    def client(self, url: str = "http://fake", **arguments: Any) -> Client:
        """A client of this server."""
        return Client(url, transport=httpx.MockTransport(self._handle), **arguments)

    def generated(self) -> list[dict[str, Any]]:
        """Bodies of the generations."""
        return [body for path, body in self.requests if path == "/generate" and not _warms(body)]

    def _handle(self, request: httpx.Request) -> httpx.Response:
        body: Any = json.loads(request.content) if request.content else None
        path = request.url.path
        self.requests.append((path, body))
        self.headers.append(request.headers)
        self.timeouts.append(request.extensions["timeout"])
        if path == STATUS_ROUTE:
            return httpx.Response(200 if self._plugin else 404, json={"served_model": "fake"})
        if path == INFO_ROUTE:
            return httpx.Response(200, text=json.dumps(self._info))
        if path == "/tokenize":
            special = [EOS + 1] if body.get("add_special_tokens", True) else []
            tokens = [[*special, *text.encode()] for text in body["prompt"]]
            return httpx.Response(200, json={"tokens": tokens})
        if path == "/detokenize":
            decode = text_of if body.get("skip_special_tokens", True) else spelled
            return httpx.Response(200, json={"text": [decode(ids) for ids in body["tokens"]]})
        return self._generate(body)

    def _generate(self, body: dict[str, Any]) -> httpx.Response:
        if _warms(body):
            return httpx.Response(200, json={**answer([]), "prompt_token_ids": _prompt(body)})
        assert self._script is not None, "nothing should be generated"
        made = self._script(body)
        if isinstance(made, tuple):
            return httpx.Response(made[0], json={"error": {"message": made[1]}})
        if body.get("stream"):
            events = [*(f"data: {json.dumps(event)}\n\n" for event in made), "data: [DONE]\n\n"]
            return httpx.Response(200, text="".join(events))
        return httpx.Response(200, json=made)


def _warms(body: dict[str, Any]) -> bool:
    params = body["sampling_params"]
    return isinstance(params, dict) and params["max_new_tokens"] == 0 and "return_logprob" not in body


def _prompt(body: dict[str, Any]) -> list[int]:
    """Ids of a prompt; a text gets a first token of its own, as with models that have a BOS token."""
    return [EOS + 1, *body["text"].encode()] if "text" in body else list(body["input_ids"])
