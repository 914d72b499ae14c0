"""Types of request fields, and how a validator says which field is wrong.

Shared by `request` and `policies`; knows no sampler.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic_core import PydanticCustomError

Positive = Annotated[int, Field(ge=1)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Probability = Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0.0, lt=1.0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]
TokenId = Annotated[int, Field(ge=0)]

CONFLICT = "conflict"

METADATA_KEY = "sglang_power"
"""The entry of OpenAI's `metadata` that holds what `custom_params` would hold, as JSON in a string."""


def conflict(field: str, problem: str, hint: str) -> PydanticCustomError:
    """The error of a model validator: fields that are valid one by one but not together.

    Args:
        field: the one to name.
        problem: what is wrong.
        hint: what to do instead.
    """
    return PydanticCustomError(CONFLICT, "{problem}", {"field": field, "problem": problem, "hint": hint})
