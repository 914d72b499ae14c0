"""SGLang programs of the server tests: backends, and what a program's ledger says of it."""

from __future__ import annotations

import functools
from typing import Any

import sglang as sgl

from integration_tests.helpers.clients import PROMPT, post
from integration_tests.server import Server


@functools.cache
def backend(server: Server) -> Any:
    """One RuntimeEndpoint per server, with the chat template of the prose model."""
    return sgl.RuntimeEndpoint(server.url, chat_template_name="chatml")


def ledger_of(state: Any) -> Any:
    """What a program holds, in token ids."""
    return state.stream_executor.backend.ledger


def decoded(server: Server, ids: list[int] | tuple[int, ...]) -> str:
    """The server's text of token ids."""
    text: str = post(server, "/detokenize", {"tokens": list(ids)}).json()["text"]
    return text


def encoded(server: Server, text: str) -> list[int]:
    """The server's token ids of a text."""
    ids: list[int] = post(server, "/tokenize", {"prompt": text, "add_special_tokens": False}).json()["tokens"]
    return ids


def power_of(state: Any, name: str) -> dict[str, Any]:
    """`meta_info.power` of a variable."""
    report: dict[str, Any] = state.get_meta_info(name)["power"]
    return report


def run(server: Server, program: Any, prompt: str = PROMPT) -> Any:
    """A program behind a prompt, to its end."""

    @sgl.function
    def whole(s: Any) -> None:
        s += prompt
        program.func(s)

    state = whole.run(backend=backend(server))
    state.sync()
    return state
