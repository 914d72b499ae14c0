"""Types of request fields, and how a validator says which field is wrong.

Shared by `request` and `policies`; knows no sampler.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic_core import PydanticCustomError

MAX_COUNT = 2**31 - 1
"""Largest count, length or time in milliseconds (25 days). Below the bounds of a tensor's index and of JSON's
integers, which a response echoes."""

MIN_TEMPERATURE = 1e-6
"""SGLang decodes greedily below it. A policy that computes a temperature never goes below it either: the
draw is then greedy, but for exact ties."""

MAX_TEMPERATURE = 1e6
"""A draw is then uniform over the tokens of the support. Inverse temperatures, and their products with any
difference of logits, so stay finite in float32."""

MAX_ALPHA = 1e3
"""Largest exponent of a target p(y)^alpha. Log probabilities are float32, good to 1e-7 nats for a token that
is nearly certain; times 1,000 that is 1e-4 nats a token. Above, rounding would decide what is accepted."""

MAX_REWARD = 1e300
MAX_REWARD_WEIGHT = 1e6
"""Largest |R| and |lambda|: their products, and differences of those, are finite in float64."""

MIN_CUT_EPSILON = 1e-6
"""Smallest share of uniform cuts: every cut keeps a probability above 0 in float64."""

Positive = Annotated[int, Field(ge=1, le=MAX_COUNT)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Temperature = Annotated[float, Field(ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE, allow_inf_nan=False)]
Exponent = Annotated[float, Field(ge=1.0, le=MAX_ALPHA, allow_inf_nan=False)]
RewardBound = Annotated[float, Field(ge=-MAX_REWARD, le=MAX_REWARD, allow_inf_nan=False)]
RewardWeight = Annotated[float, Field(ge=-MAX_REWARD_WEIGHT, le=MAX_REWARD_WEIGHT, allow_inf_nan=False)]
Probability = Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0.0, lt=1.0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]
TokenId = Annotated[int, Field(ge=0)]

UNTEMPERED = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0}
"""SGLang's sampling parameters with which tokens are drawn from the model's own law."""

TOP_K_ALL = 1 << 30
"""SGLang writes "whole vocabulary" as -1 or as this number."""

SCORE_ALIASES = {"logp": "mean_log_p", "llm": "self_evaluation"}
"""Other names of scores that requests and programs take -> the documented ones."""

CONFLICT = "conflict"

METADATA_KEY = "sglang_power"
"""The entry of OpenAI's `metadata` that holds what `custom_params` would hold, as JSON in a string."""


def score_name(value: object) -> object:
    """The documented name of a score; whatever is no other name of one stays, for the field to judge."""
    return SCORE_ALIASES.get(value, value) if isinstance(value, str) else value


def conflict(field: str, problem: str, hint: str) -> PydanticCustomError:
    """The error of a model validator: fields that are valid one by one but not together.

    Args:
        field: the one to name.
        problem: what is wrong.
        hint: what to do instead.
    """
    return PydanticCustomError(CONFLICT, "{problem}", {"field": field, "problem": problem, "hint": hint})
