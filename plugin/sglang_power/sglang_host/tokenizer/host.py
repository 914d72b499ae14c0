"""One call of SGLang's TokenizerManager, and what the plugin keeps for a manager between calls."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sglang_power.samplers.tasks import check_cancelled
from sglang_power.server.allowance import Allowance
from sglang_power.server.config import ServerConfig
from sglang_power.sglang_host.tokenizer.governor import Governor
from sglang_power.sglang_host.tokenizer.launches import Launches

if TYPE_CHECKING:
    from sglang_power.sglang_host.tokenizer.placeholder import Placeholder

GenerateRequest = Callable[..., Any]


@dataclass
class ManagerState:
    """What the plugin keeps for one TokenizerManager.

    Args:
        max_concurrent: requests of samplers of whole answers at work at once.
        max_children: children at work at once.
        allowance: tokens of each key, where keys are limited.

    Attributes:
        live: requests of which parts run in SGLang, by their ids.
        parts: id of a call -> the ids of its prompts, where SGLang gave them others.
        repeating: aborts that are being repeated.
        launches: children on their way to the scheduler.
        weight_updates: how many of them this process has sent to the scheduler.
    """

    max_concurrent: int
    max_children: int
    allowance: Allowance | None = None
    live: dict[str, Placeholder] = field(default_factory=dict)
    parts: dict[str, Sequence[str]] = field(default_factory=dict)
    repeating: set[asyncio.Task[None]] = field(default_factory=set)
    launches: Launches = field(default_factory=Launches)
    weight_updates: int = 0

    @cached_property
    def slots(self) -> asyncio.Semaphore:
        """The places of requests at work."""
        return asyncio.Semaphore(self.max_concurrent)

    @cached_property
    def governor(self) -> Governor:
        """The places of children."""
        return Governor(self.max_children)

    @contextmanager
    def known_as(self, rid: str, parts: Sequence[str]) -> Iterator[None]:
        """For the time of a with-block, let an abort of a call's id be one of its prompts' ids."""
        known = self.parts.setdefault(rid, parts)
        try:
            yield
        finally:
            if known is parts:
                del self.parts[rid]


_states: weakref.WeakKeyDictionary[Any, ManagerState] = weakref.WeakKeyDictionary()


def state_of(manager: Any, config: ServerConfig) -> ManagerState:
    """Return what is kept for a TokenizerManager, made when it is first asked for."""
    if manager not in _states:
        limits = config.limits
        _states[manager] = ManagerState(
            limits.max_concurrent_requests,
            limits.max_inflight_children,
            None if limits.per_key is None else Allowance(limits.per_key.tokens_per_minute),
        )
    return _states[manager]


@dataclass(frozen=True)
class Host:
    """One call of TokenizerManager.generate_request.

    Args:
        manager: SGLang's TokenizerManager.
        original: its own generate_request.
        obj: the GenerateReqInput, without our keys; of one prompt, where it serves one.
        request: the HTTP request, None in an Engine.
        config: the server's configuration.
    """

    manager: Any
    original: GenerateRequest
    obj: Any
    request: Any
    config: ServerConfig

    def of(self, obj: Any) -> Host:
        """Return the same call for one of its prompts."""
        return replace(self, obj=obj)

    async def responses(self, obj: Any) -> AsyncGenerator[Any, None]:
        """Yield SGLang's own responses to a request of this call; a cancellation is never lost in them."""
        async with aclosing(self.original(self.manager, obj, self.request)) as responses:
            async for response in responses:
                check_cancelled()
                yield response

    @property
    def state(self) -> ManagerState:
        """What is kept for the manager."""
        return state_of(self.manager, self.config)
