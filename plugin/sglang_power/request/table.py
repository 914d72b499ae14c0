"""The table of request models, and the way from flat parameters to the one that they name.

Server, configuration, programs and experiments all validate by it.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

from pydantic import ValidationError

from sglang_power.errors import ConfigError, RequestError
from sglang_power.extensions import extensions
from sglang_power.policies import Policy, policies
from sglang_power.request.branch import BranchRequest
from sglang_power.request.lookahead import LookaheadRequest
from sglang_power.request.mistakes import request_error
from sglang_power.request.perfect import PerfectRequest
from sglang_power.request.power import PowerRequest
from sglang_power.request.selection import CotRequest
from sglang_power.request.smc import SmcRequest
from sglang_power.request.voting import BestOfRequest, VoteRequest
from sglang_power.request.whole import WholeAnswerRequest

SamplerRequest = WholeAnswerRequest | Policy

ENTRY_POINTS = "sglang_power.samplers"

BUILT_IN: tuple[type[WholeAnswerRequest], ...] = (
    PowerRequest,
    SmcRequest,
    PerfectRequest,
    LookaheadRequest,
    CotRequest,
    BranchRequest,
    VoteRequest,
    BestOfRequest,
)

NO_SAMPLER = "none"
"""`sampler: "none"` opts out of a server-side default."""

STRICT = "strict"
"""Beside the parameters of any sampler, true: what would fall back to another sampler is an error."""

STATISTICS = "return_statistics"
"""Beside a per-step policy, or where no sampler is named, true: answers bring their rows' statistics."""


@functools.cache
def samplers() -> dict[str, type[SamplerRequest]]:
    """Return the request model of every sampler that a request may name: built-in, installed, policies.

    Raises:
        ConfigError: an entry point that is no sampler or takes a name that is in use.
    """
    own = [*BUILT_IN, *(sampler.request for sampler in installed_samplers())]
    return {**{model.name(): model for model in own}, **policies()}


@functools.cache
def installed_samplers() -> tuple[Any, ...]:
    """Return the samplers of whole answers that other distributions bring, as `samplers.base` has them.

    Raises:
        ConfigError: an entry point that cannot be loaded, is no sampler, or takes a name that is in use.
    """
    taken = {NO_SAMPLER, *policies(), *(model.name() for model in BUILT_IN)}
    found = []
    for _, named, sampler in extensions(ENTRY_POINTS):
        model = getattr(sampler, "request", None)
        if not (isinstance(sampler, type) and inspect.iscoroutinefunction(getattr(sampler, "run", None))):
            raise ConfigError(f"{named}: not a class with `async def run(self, asked, tools)`")
        if not (isinstance(model, type) and issubclass(model, WholeAnswerRequest)):
            raise ConfigError(f"{named}: its `request` is no subclass of WholeAnswerRequest")
        if not isinstance(getattr(model.model_fields.get("sampler"), "default", None), str):
            raise ConfigError(f"{named}: `sampler` of its request has no default, its name")
        if model.name() in taken:
            raise ConfigError(f"{named}: the name {model.name()!r} is in use; choose another")
        taken.add(model.name())
        found.append(sampler)
    return tuple(found)


def is_strict(values: dict[str, Any]) -> bool:
    """Return what flat parameters say of `strict`; see STRICT.

    Raises:
        RequestError: neither true nor false.
    """
    return switch(STRICT, values.get(STRICT, False))


def switch(field: str, value: object) -> bool:
    """Return the value of a parameter that is true or false.

    Raises:
        RequestError: neither true nor false.
    """
    if not isinstance(value, bool):
        raise RequestError(field, value, "neither true nor false", "Leave it out for false")
    return value


def parse_request(values: dict[str, Any]) -> SamplerRequest:
    """Validate flat parameters; `sampler` names the model, "power" where it is absent.

    `strict` is validated, too, and is no parameter of the model's; see `is_strict`.

    Raises:
        RequestError: unknown sampler, unknown key, wrong type or range.
    """
    is_strict(values)
    values = {key: value for key, value in values.items() if key != STRICT}
    name = values.get("sampler", "power")
    known = samplers()
    if not isinstance(name, str) or name not in known:
        names = ", ".join([*known, NO_SAMPLER])
        raise RequestError("sampler", name, "unknown sampler", f"Use one of: {names}")
    try:
        return known[name].model_validate(values)
    except ValidationError as error:
        raise request_error(known[name], error, values) from None


def parse_power(values: dict[str, Any]) -> PowerRequest:
    """`parse_request` of parameters that are known to be of `power`."""
    request = parse_request({"sampler": "power", **values})
    assert isinstance(request, PowerRequest)
    return request
