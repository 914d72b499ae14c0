"""Samplers as parameters of other samplers; their mistakes name the field behind a dot."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from sglang_power.fields import conflict
from sglang_power.policies import Policy, policies
from sglang_power.request.mistakes import request_error


def row_law_policy(field: str, values: dict[str, Any]) -> Policy:
    """A policy whose law of a token is a function of the tokens before it alone.

    Raises:
        PydanticCustomError: a conflict that names what is wrong inside `field`.
    """
    known = policies()
    name = values.get("sampler")
    if not isinstance(name, str) or name not in known:
        raise conflict(f"{field}.sampler", "unknown policy", f"Use one of: {', '.join(known)}")
    try:
        policy = known[name].model_validate(values)
    except ValidationError as error:
        wrong = request_error(known[name], error, values)
        raise conflict(f"{field}.{wrong.field}", wrong.problem, wrong.hint) from None
    if not policy.in_proposals:
        raise conflict(
            f"{field}.sampler", f"{name} is no law of one row alone", "Use it as a sampler of its own"
        )
    if policy.seed is not None:
        raise conflict(f"{field}.seed", "the request has one seed", f"Set seed beside {field}")
    return policy
