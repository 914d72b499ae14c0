"""Entropix (github.com/xjdr-alt/entropix): four quadrants of entropy and varentropy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from sglang_power.fields import MIN_TEMPERATURE, FiniteFloat, NonNegativeFloat, TokenId, conflict
from sglang_power.policies.base import (
    Action,
    Columns,
    Policy,
    Row,
    Rows,
    entropy,
    entropy_of,
    inverse,
    softmax,
)
from sglang_power.types import FloatArray

NOT_YET = -1


class Entropix(Policy):
    """What to do with a row, by H and V (variance of -log p under p) of the base law, each high if above its
    threshold:

        H low,  V low    the most likely token
        H high, V low    insert `insert_ids`, one per step and once per answer; after that, sample
        H low,  V high   `explore`
        H high, V high   sample at T0 * hot_factor, T0 the request's temperature

    Memory is the index, in the answer, of the token at which the insertion began. `law` is that of an
    answer's first token.

    Args:
        entropy_threshold, varentropy_threshold: nats, nats^2; they depend on the model.
        insert_ids: token ids, for example of a question to itself; none: sample.
        explore: "sample" at the request's temperature, or "branch": fork there, with the other parameters of
            `branch` at their defaults, and draw everything else by this policy; excludes insert_ids.
        hot_factor: above 1.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"memory"})
    in_proposals: ClassVar[bool] = False
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"entropy_threshold": 1.0, "varentropy_threshold": 0.5},
        {"entropy_threshold": 0.5, "varentropy_threshold": 1.5, "insert_ids": [0, 3], "hot_factor": 3.0},
        {"entropy_threshold": 2.0, "varentropy_threshold": 0.0},
    )

    sampler: Literal["entropix"] = "entropix"
    entropy_threshold: NonNegativeFloat
    varentropy_threshold: NonNegativeFloat
    insert_ids: list[TokenId] = []  # noqa: RUF012  (pydantic copies it)
    explore: Literal["sample", "branch"] = "sample"
    hot_factor: Annotated[FiniteFloat, Field(gt=1.0)] = 1.5

    @model_validator(mode="after")
    def _no_insertion_into_branches(self) -> Self:
        if self.explore == "branch" and self.insert_ids:
            problem = (
                'not supported with explore="branch": branches do not know what was inserted before them'
            )
            raise conflict("insert_ids", problem, 'Leave it out, or use explore="sample"')
        return self

    @property
    def branching(self) -> dict[str, Any] | None:
        """Forks in the quadrant of low entropy and high varentropy."""
        if self.explore != "branch":
            return None
        return {
            "trigger": "entropix_low_high",
            "threshold": [self.entropy_threshold, self.varentropy_threshold],
            "continuation_policy": self.model_copy(update={"explore": "sample", "seed": None}),
            "seed": self.seed,
        }

    @property
    def token_ids(self) -> dict[str, list[int]]:
        """The ids to insert."""
        return {"insert_ids": self.insert_ids}

    @classmethod
    def columns(cls, requests: Sequence[Self], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
        """Those of the base, and `insert_ids` [rows, longest] int64, padded with -1."""
        longest = max(1, *(len(request.insert_ids) for request in requests))
        padded = [
            request.insert_ids + [NOT_YET] * (longest - len(request.insert_ids)) for request in requests
        ]
        return {**super().columns(requests, dtype), "insert_ids": torch.tensor(padded, dtype=torch.int64)}

    @classmethod
    def act(cls, rows: Rows, params: Columns) -> Action:
        """Return what each row's quadrant says: temperature, inserted token, and memory of the insertion."""
        assert rows.memory is not None
        h = entropy_of(rows.log_p)
        spread = (rows.log_p + h).masked_fill(rows.log_p == -math.inf, 0.0)
        v = (rows.log_p.exp() * spread * spread).sum(dim=-1, keepdim=True)
        h_high, v_high = h > params["entropy_threshold"], v > params["varentropy_threshold"]
        # "At this index or later" repeats the same action where a row is computed again.
        may_start = (rows.memory == NOT_YET) | (rows.memory >= rows.index)
        start = torch.where(h_high & ~v_high & may_start, rows.index, rows.memory)
        kappa = torch.where(h_high & v_high, inverse(params["hot_factor"] / rows.kappa), rows.kappa)
        return Action(
            kappa=kappa.masked_fill(~h_high & ~v_high, 1.0 / MIN_TEMPERATURE),
            forced=_inserted(params["insert_ids"], start, rows.index),
            memory=start,
        )

    def law(self, row: Row) -> FloatArray:
        """Return the law of an answer's first token, by the row's quadrant."""
        p = softmax(row.logits)
        h, support = entropy(p), p > 0
        v = float(p[support] @ (np.log(p[support]) + h) ** 2)
        quadrant = (h > self.entropy_threshold, v > self.varentropy_threshold)
        if quadrant == (True, False) and self.insert_ids:
            return np.asarray(np.arange(len(p)) == self.insert_ids[0], dtype=np.float64)
        if quadrant == (False, False):
            return softmax(row.logits, MIN_TEMPERATURE)
        return softmax(row.logits, row.temperature * (self.hot_factor if quadrant == (True, True) else 1.0))


def _inserted(ids: torch.Tensor, start: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """[rows, 1] the token that an insertion from `start` on has at `index`; -1 outside of it."""
    longest = ids.shape[1]
    place = index - start
    inside = (start != NOT_YET) & (place >= 0) & (place < longest)
    return ids.gather(1, place.clamp(0, longest - 1)).masked_fill(~inside, -1)
