"""Turns what pydantic says of a request into one RequestError: the field, the value, what to do."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from sglang_power.errors import RequestError
from sglang_power.fields import CONFLICT


def request_error(model: type[BaseModel], error: ValidationError, values: dict[str, Any]) -> RequestError:
    """The first mistake in `values`, which `model` refused."""
    first = error.errors(include_url=False)[0]
    if first["type"] == CONFLICT:
        detail = first["ctx"]
        value = _value_at(values, detail["field"])
        return RequestError(detail["field"], value, detail["problem"], detail["hint"])
    problem, field = first["msg"], ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        names = ", ".join(sorted(model.model_fields))
        return RequestError(field, first["input"], "unknown parameter", f"Known parameters: {names}")
    if first["type"] == "missing":
        hint = "Name it, or set it for the model in SGLANG_POWER_CONFIG"
        return RequestError(field, None, "required", hint)
    if not first["loc"]:  # a name that is no unicode, half of a surrogate pair for example
        return RequestError("parameters", first["input"], problem, "Correct this name")
    return RequestError(field, first["input"], problem, _remedy(model, str(first["loc"][0])))


def _remedy(model: type[BaseModel], name: str) -> str:
    field = model.model_fields[name]
    if field.is_required():
        return f"Correct it; {name} has no default"
    default = "1/alpha" if name == "proposal_temperature" else field.default
    return "Leave it out" if default is None else f"Leave it out for the default of {default}"


def _value_at(values: dict[str, Any], path: str) -> object:
    """What a request holds at a dotted path; None where it holds nothing."""
    found: object = values
    for part in path.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found
