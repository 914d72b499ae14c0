"""SGLang's own rules as named policies: their draws are a function of the seed.

Ties with a bound are all kept, as in `sglang_power_kernels.truncation_bounds`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from sglang_power.fields import MAX_COUNT, MIN_TEMPERATURE, PositiveFloat, Probability
from sglang_power.policies.base import (
    Action,
    Columns,
    Policy,
    Row,
    Rows,
    first_ranked,
    inverse,
    softmax,
    top_mass,
    top_tokens,
    truncated,
)
from sglang_power.types import FloatArray


class Greedy(Policy):
    """The most likely token; of exact ties one at random."""

    sampler: Literal["greedy"] = "greedy"

    @classmethod
    def act(cls, rows: Rows, params: Columns) -> Action:  # noqa: ARG003  (it has none)
        """Keep the most likely token, and all that tie with it."""
        return Action(kappa=torch.full_like(rows.kappa, 1.0 / MIN_TEMPERATURE), keep=top_tokens(rows.logits))

    def law(self, row: Row) -> FloatArray:
        """Return the even law on the most likely tokens."""
        top = row.logits == row.logits.max()
        return truncated(np.ones(len(top)), top)


class Temperature(Policy):
    """`T = T0 * value`, T0 the request's temperature.

    Args:
        value: above 0.
    """

    full_support: ClassVar[bool] = True
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({"value": 0.5}, {"value": 2.0})

    sampler: Literal["temperature"] = "temperature"
    value: PositiveFloat

    @classmethod
    def act(cls, rows: Rows, params: Columns) -> Action:
        """Return `T0 * value` for every row."""
        return Action(kappa=inverse(params["value"] / rows.kappa))

    def law(self, row: Row) -> FloatArray:
        """Return the law at `T0 * value`."""
        return softmax(row.logits, row.temperature * self.value)


class TopK(Policy):
    """Keep the k most likely tokens, and all that tie with the last (Fan et al., arXiv 1805.04833).

    Args:
        k: at least 1; the whole vocabulary at most.
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({"k": 1}, {"k": 5})

    sampler: Literal["top_k"] = "top_k"
    k: Annotated[int, Field(ge=1, le=MAX_COUNT)]

    @classmethod
    def act(cls, rows: Rows, params: Columns) -> Action:
        """Keep the k most likely tokens, and all that tie with the last."""
        return Action(keep=first_ranked(rows.logits, params["k"].long()))

    def law(self, row: Row) -> FloatArray:
        """Return the law on the k most likely tokens, and all that tie with the last."""
        kth = np.sort(row.logits)[-min(self.k, len(row.logits))]
        return truncated(softmax(row.logits, row.temperature), row.logits >= kth)


class TopP(Policy):
    """Keep the fewest most likely tokens whose mass reaches p, and all that tie with the last (Holtzman et
    al., arXiv 1904.09751).

    Args:
        p: the mass.
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({"p": 0.3}, {"p": 0.9})

    sampler: Literal["top_p"] = "top_p"
    p: Probability

    @classmethod
    def act(cls, rows: Rows, params: Columns) -> Action:
        """Keep the fewest most likely tokens whose mass reaches p, and all that tie with the last."""
        return Action(keep=top_mass(rows.logits, rows.log_tempered.exp(), params["p"]))

    def law(self, row: Row) -> FloatArray:
        """Return the law on the tokens above which less than p has been reached."""
        law = softmax(row.logits, row.temperature)
        above = np.array([law[row.logits > x].sum() for x in row.logits])
        return truncated(law, above < self.p)


class MinP(Policy):
    """Keep the tokens of at least p times the largest probability (Nguyen et al., arXiv 2407.01082).

    Args:
        p: the share.
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({"p": 0.05}, {"p": 0.5})

    sampler: Literal["min_p"] = "min_p"
    p: Probability

    @classmethod
    def act(cls, rows: Rows, params: Columns) -> Action:
        """Keep the tokens of at least p times the largest probability."""
        log_p = rows.log_tempered
        return Action(keep=log_p >= log_p.amax(dim=-1, keepdim=True) + params["p"].log())

    def law(self, row: Row) -> FloatArray:
        """Return the law on the tokens of at least p times the largest probability."""
        law = softmax(row.logits, row.temperature)
        return truncated(law, law >= self.p * law.max())
