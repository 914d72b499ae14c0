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


def parse_request(values: dict[str, Any]) -> SamplerRequest:
    """Validate flat parameters; `sampler` names the model, "power" where it is absent.

    Raises:
        RequestError: unknown sampler, unknown key, wrong type or range.
    """
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
