"""The one place that touches sglang.lang: hooks on its interpreter, our expressions, a program's insides.

Importing it installs the hooks, once per process, after checking that SGLang is a version they were written
for. They change programs that use this package only, but for one: `fork` waits for pending text before it
looks whether there is any to cache (stock forks may skip the warm-up).

    StreamExecutor.submit    waits for the draft before `sp.refine` is queued
    StreamExecutor._execute  runs our expressions; a failure ends the program's work, not its thread
    StreamExecutor.fork      see above; forks get a ledger of their own
    StreamExecutor.get_var   a variable that a failure left unset raises the failure
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import logging
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

from sglang.lang import api
from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint
from sglang.lang.choices import ChoicesDecision, ChoicesSamplingMethod
from sglang.lang.global_config import global_config
from sglang.lang.interpreter import ProgramState, StreamExecutor
from sglang.lang.ir import SglExpr, SglExprList, SglGen, SglImage, SglVideo
from sglang.lang.tracer import TracerProgramState

from sglang_power.errors import ConfigError, PowerError, UnsupportedError
from sglang_power.fields import UNTEMPERED
from sglang_power.frontend.client import Clients
from sglang_power.frontend.session import SegmentRequest, Session

__all__ = [
    "ChoicesDecision",
    "ChoicesSamplingMethod",
    "PowerGen",
    "ProgramState",
    "Refine",
    "SglExpr",
    "attach",
    "gen_arguments",
    "install",
    "is_tracer",
    "merge",
]

OLDEST, NEWEST = (0, 5, 20), (0, 5, 23)

SIGNATURES: dict[str, tuple[str, ...]] = {
    "submit": ("self", "expr"),
    "_execute": ("self", "other"),
    "fork": ("self", "size", "position_ids_offset"),
    "get_var": ("self", "name"),
}

_log = logging.getLogger("sglang_power.frontend")
_clients = Clients()


class PowerGen(SglGen):  # type: ignore[misc]  # sglang is untyped
    """`sgl.gen` with a sampler of this package.

    Args:
        values: its `custom_params`.
        settings: SGLang's arguments of `sgl.gen`.
    """

    def __init__(self, name: str | None, values: dict[str, Any], settings: dict[str, Any]) -> None:
        plain = api.gen(name, **settings)
        super().__init__(name)
        self.sampling_params = plain.sampling_params
        self.values = values


class Refine(SglGen):  # type: ignore[misc]
    """Power steps on the segment that was generated last.

    Args:
        name: its variable.
        values: `custom_params` without the draft.
    """

    def __init__(self, name: str, values: dict[str, Any]) -> None:
        super().__init__(name)
        self.values = values


def gen_arguments() -> frozenset[str]:
    """The arguments of `sgl.gen` that go with a sampler; `n` is one of "top_n_sigma"."""
    return frozenset(inspect.signature(api.gen).parameters) - {"name", "choices", "choices_method", "n"}


def is_tracer(state: Any) -> bool:
    """Whether a program is only traced, as `run_batch` does to find what its programs share."""
    return isinstance(state, TracerProgramState)


def attach(executor: Any) -> Session:
    """The executor's session; from here on its program sends token ids.

    Raises:
        UnsupportedError: its backend is no SGLang server, or the program uses what ids cannot do.
        HostError: the server has no plugin.
    """
    if isinstance(executor.backend, Session):
        return executor.backend
    endpoint = executor.backend
    if not isinstance(endpoint, RuntimeEndpoint):
        hint = "Use sgl.RuntimeEndpoint with the URL of an SGLang server"
        raise UnsupportedError("backend", type(endpoint).__name__, "no SGLang server", hint)
    if executor.num_api_spec_tokens is not None:
        value = executor.num_api_spec_tokens
        raise UnsupportedError("num_api_spec_tokens", value, "speculates in text", "Leave it out")
    output = {
        "skip_special_tokens": global_config.skip_special_tokens_in_output,
        "spaces_between_special_tokens": global_config.spaces_between_special_tokens_in_out,
    }
    session = Session(endpoint, _clients.of(endpoint), output)
    session.settle(executor)
    executor.backend = session
    return session


def merge(winner: Any, into: Any) -> None:
    """Make an executor go on where another one, which was forked from it, has come to."""
    into.sync()
    names = [name for name in winner.variables if name not in into.variables or name in winner.variable_event]
    into.variables.update(winner.variables)
    into.meta_info.update(winner.meta_info)
    into.messages_ = list(winner.messages_)
    into.cur_role, into.cur_role_begin_pos = winner.cur_role, winner.cur_role_begin_pos
    into.backend.ledger = winner.backend.ledger.copy()
    into.text_ = winner.text_
    for name in names:
        _announce(into, name)
    if into.stream:
        into.stream_text_event.set()


def _announce(executor: Any, name: Any) -> None:
    """Wake whoever waits for a variable; a reader of its stream expects the value to be complete first."""
    executor.variable_event.setdefault(name, threading.Event()).set()
    if executor.stream:
        executor.stream_var_event.setdefault(name, threading.Event()).set()


def _flat(expr: Any) -> Iterator[Any]:
    if isinstance(expr, SglExprList):
        for part in expr.expr_list:
            yield from _flat(part)
    else:
        yield expr


def _submit(original: Callable[..., None], self: Any, expr: Any) -> None:
    """`sp.refine` renews its variable's event when it is queued, so the draft has to be there before.

    Raises:
        UnsupportedError: the program has ended; SGLang would wait for ever.
    """
    if isinstance(self.backend, Session) and self.backend.ended:
        problem, hint = "its program has ended", "Go on with a branch inside of the program"
        raise UnsupportedError("state", str(expr), problem, hint)
    if not any(isinstance(part, Refine) for part in _flat(expr)):
        return original(self, expr)
    for part in _flat(expr):
        if isinstance(part, Refine):
            self.sync()
        original(self, part)
    return None


def _execute(original: Callable[..., None], self: Any, other: Any) -> None:
    if self.error_ is not None:
        return _release(self, other)
    ours = isinstance(self.backend, Session)
    if not ours and not isinstance(other, PowerGen | Refine):
        if isinstance(other, SglGen):
            self.last_gen = other
        return original(self, other)
    try:
        _run(original, self, other)
    except Exception as error:  # as broad as SGLang's own worker, which would end its thread and hang `sync`
        if not self.use_thread:
            raise
        self.error_ = error
        _log.error("a program failed: %s", error)
        _release(self, other)
    return None


def _run(original: Callable[..., None], executor: Any, expr: Any) -> None:
    if isinstance(expr, SglImage | SglVideo):
        raise UnsupportedError("image", expr.path, "images have no token ids", "Use SGLang's own primitives")
    if not isinstance(expr, SglGen):
        original(executor, expr)
        return
    session = _adopted(executor, expr.name) if isinstance(expr, Refine) else attach(executor)
    session.asked = _refinement(executor, session, expr) if isinstance(expr, Refine) else _asked(expr)
    try:
        original(executor, expr)
    finally:
        session.asked = SegmentRequest()


def _asked(expr: Any) -> SegmentRequest:
    return SegmentRequest(expr.name, expr.values if isinstance(expr, PowerGen) else None)


def _adopted(executor: Any, name: str) -> Session:
    """`attach` where a draft may stand that the program generated while it still worked with text."""
    last: Any = getattr(executor, "last_gen", None)
    text = executor.variables.get(name)
    known = isinstance(executor.backend, Session) or last is None or last.name != name
    if known or not executor.text_.endswith(text):
        return attach(executor)
    settings = executor._resolve_sampling_params(last.sampling_params)
    executor.text_ = executor.text_[: len(executor.text_) - len(text)]
    session = attach(executor)
    session.adopt(executor, name, text, executor.meta_info[name]["finish_reason"], settings)
    return session


def _refinement(executor: Any, session: Session, expr: Refine) -> SegmentRequest:
    draft = session.withdraw(executor, expr.name)
    executor.variables.pop(expr.name, None)
    settings = dataclasses.replace(draft.settings, **UNTEMPERED)
    return SegmentRequest(expr.name, {**expr.values, "initial_ids": list(draft.ids)}, settings)


def _release(executor: Any, expr: Any) -> None:
    """Nobody waits for the variables of what will not run."""
    for part in _flat(expr):
        if getattr(part, "name", part) in executor.variable_event:
            _announce(executor, part.name)


def _fork(original: Callable[..., list[Any]], self: Any, size: int = 1, offset: Any = None) -> list[Any]:
    self.sync()
    forks = original(self, size, offset)
    if isinstance(self.backend, Session):
        for fork in forks:
            fork.backend = self.backend.forked(fork)
    return forks


def _get_var(original: Callable[..., Any], self: Any, name: str) -> Any:
    try:
        return original(self, name)
    except KeyError:
        if isinstance(self.error_, PowerError):
            raise self.error_ from None
        raise


HOOKS: dict[str, Callable[..., Any]] = {
    "submit": _submit,
    "_execute": _execute,
    "fork": _fork,
    "get_var": _get_var,
}


def install() -> None:
    """Put the hooks in place; a second call changes nothing.

    Raises:
        ConfigError: this SGLang is not one that they were written for.
    """
    installed = version("sglang")
    numbers = tuple(int(part) for part in installed.split(".")[:3] if part.isdigit())
    if not OLDEST <= numbers <= NEWEST:
        raise ConfigError(f"sglang_power.frontend works with SGLang 0.5.20 to 0.5.23, not {installed}")
    for name, hook in HOOKS.items():
        original = getattr(StreamExecutor, name)
        if hasattr(original, "__sglang_power__"):
            continue
        if tuple(inspect.signature(original).parameters) != SIGNATURES[name]:
            raise ConfigError(f"sglang_power.frontend does not know StreamExecutor.{name} of {installed}")
        setattr(StreamExecutor, name, _hooked(original, hook))


def _hooked(original: Callable[..., Any], hook: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def hooked(self: Any, *args: Any, **kwargs: Any) -> Any:
        return hook(original, self, *args, **kwargs)

    hooked.__sglang_power__ = True  # type: ignore[attr-defined]
    return hooked
