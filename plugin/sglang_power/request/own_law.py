"""What a request may say to samplers that draw by a law of their own, which has no token temperature.

Many clients send a temperature with every request, so what to do with it is a field of these samplers.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import model_validator

from sglang_power.errors import TemperatureError
from sglang_power.fields import conflict
from sglang_power.request.whole import WholeAnswerRequest

OnTemperature = Literal["refuse", "ignore", "alpha"]


class OwnLawRequest(WholeAnswerRequest):
    """Base of samplers whose law is no token law at some temperature.

    Args:
        on_temperature: what a temperature beside the sampler means, unless it is 1: "refuse" the request,
            "ignore" it and say so, or "alpha": alpha = 1/temperature, for samplers that have an alpha.
    """

    on_temperature: OnTemperature = "refuse"

    @property
    def idle(self) -> frozenset[str]:
        """Return the parameters that do not act beside the others, and are refused where they are named."""
        return frozenset()

    @model_validator(mode="after")
    def _alpha_where_there_is_one(self) -> Self:
        if self.on_temperature == "alpha" and "alpha" not in type(self).model_fields:
            raise conflict("on_temperature", "this sampler has no alpha", "Use refuse or ignore")
        return self


def at_temperature(
    values: dict[str, Any], temperature: object, alpha: object, field: str = ""
) -> dict[str, Any]:
    """Return the parameters of such a sampler that a client's temperature changes.

    Args:
        values: parameters as they are in force, not validated yet.
        temperature: the client's.
        alpha: what the client itself named; None where the server chose it.
        field: the parameter that holds `values`, where they are not the request's own.

    Raises:
        TemperatureError: it is refused, is no temperature, or contradicts the client's alpha.
    """
    rule = f"{field}.on_temperature" if field else "on_temperature"
    if not is_temperature(temperature):
        raise TemperatureError("temperature", temperature, "not a finite number of at least 0", "Correct it")
    if values.get("on_temperature") == "alpha":
        return {"alpha": _alpha_of(temperature, alpha, rule)}
    if values.get("on_temperature") != "ignore" and temperature != 1:
        name = values.get("sampler", "power")
        problem = f"{name!r} draws by a law of its own, in which no token temperature has a place"
        hint = f'Leave it out, or set {rule} to "ignore", or to "alpha" for alpha = 1/temperature'
        raise TemperatureError("temperature", temperature, problem, hint)
    return {}


def is_temperature(value: object) -> bool:
    """Return whether a value is what SGLang takes for a temperature."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return math.isfinite(value) and value >= 0


def _alpha_of(temperature: Any, named: object, rule: str) -> float:
    """Return 1/temperature, of which the client may have named nothing else."""
    if not 0 < temperature <= 1:
        problem = f'{rule}="alpha" takes temperatures above 0 and up to 1'
        raise TemperatureError("temperature", temperature, problem, f'Correct it, or set {rule} to "ignore"')
    alpha: float = 1.0 / temperature
    if named is not None and named != alpha:
        problem = f'{rule}="alpha" makes alpha {alpha:g} of it, and alpha={named!r} is named, too'
        raise TemperatureError("temperature", temperature, problem, "Name one of the two")
    return alpha
