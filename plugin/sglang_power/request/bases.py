"""`power` and `perfect` as parameters of another sampler, which draws or refines answers with them."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError

from sglang_power.fields import conflict
from sglang_power.request.mistakes import request_error
from sglang_power.request.perfect import PerfectRequest
from sglang_power.request.power import PowerRequest

Base = TypeVar("Base", PowerRequest, PerfectRequest)

OWN = (
    "seed",
    "initial_text",
    "initial_ids",
    "max_total_tokens",
    "deadline_ms",
    "return_trace",
    "reward",
    "reward_weight",
)
"""Fields that belong to the request around it, or to a request of its own."""


def power_base(field: str, values: dict[str, Any]) -> PowerRequest:
    """`power` as it is written inside `field`.

    Raises:
        PydanticCustomError: a conflict that names what is wrong inside `field`.
    """
    if values.get("sampler") != "power":
        raise conflict(f"{field}.sampler", "not power", 'Use {"sampler": "power", ...}')
    return _base(PowerRequest, field, values)


def perfect_base(field: str, values: dict[str, Any]) -> PerfectRequest:
    """`perfect` as it is written inside `field`.

    Raises:
        PydanticCustomError: a conflict that names what is wrong inside `field`.
    """
    return _base(PerfectRequest, field, values)


def _base(model: type[Base], field: str, values: dict[str, Any]) -> Base:
    for name in OWN:
        if name in values:
            raise conflict(
                f"{field}.{name}", "not a parameter here", f"Leave it out, or set it beside {field}"
            )
    try:
        return model.model_validate(values)
    except ValidationError as error:
        wrong = request_error(model, error, values)
        raise conflict(f"{field}.{wrong.field}", wrong.problem, wrong.hint) from None


def base_echo(request: PowerRequest | PerfectRequest | None) -> dict[str, Any] | None:
    """Its parameters in force, for the response."""
    return None if request is None else request.model_dump(exclude={*OWN, "on_temperature", *request.idle})
