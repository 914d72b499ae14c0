"""From flat parameters to the model of the sampler that they name."""

from __future__ import annotations

import functools
from typing import Any

from pydantic import ValidationError

from sglang_power.errors import RequestError
from sglang_power.policies import Policy, policies
from sglang_power.request.branch import BranchRequest
from sglang_power.request.mistakes import request_error
from sglang_power.request.power import PowerRequest
from sglang_power.request.selection import BestOfRequest, CotRequest, VoteRequest

SelectingRequest = CotRequest | BranchRequest | VoteRequest | BestOfRequest
SamplerRequest = PowerRequest | SelectingRequest | Policy

NO_SAMPLER = "none"
"""`sampler: "none"` opts out of a server-side default."""

STRICT = "strict"
"""Beside the parameters of any sampler, true: what would fall back to another sampler is an error."""


@functools.cache
def samplers() -> dict[str, type[SamplerRequest]]:
    """Every sampler that a request may name; the next one is added here."""
    whole_answers: dict[str, type[SamplerRequest]] = {
        "power": PowerRequest,
        "cot": CotRequest,
        "branch": BranchRequest,
        "vote": VoteRequest,
        "best_of": BestOfRequest,
    }
    return {**whole_answers, **policies()}


def is_strict(values: dict[str, Any]) -> bool:
    """Return what flat parameters say of `strict`; see STRICT.

    Raises:
        RequestError: neither true nor false.
    """
    strict = values.get(STRICT, False)
    if not isinstance(strict, bool):
        raise RequestError(STRICT, strict, "neither true nor false", "Leave it out for false")
    return strict


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
