"""What a per-step policy is: a rule that reshapes one row of logits before a token is drawn from it.

A policy is one frozen pydantic model (its fields are the request's parameters) with the rule twice: `act`
on a batch of rows in torch, which is what runs, and `law` on one row in numpy, which is the specification
that tests compare it with. Knows neither SGLang nor HTTP.

The order of one row, in which each stage measures the law that the stage before left:

    temperature (the request's) -> policy -> top-k, top-p, min-p (jointly) -> draw
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from sglang_power.fields import MAX_TEMPERATURE, MIN_TEMPERATURE, Seed
from sglang_power.types import FloatArray

MASS_UNIT = 2.0**52
"""Scale of running sums in fixed point: float32 probabilities above 2^-28 are exact."""

Columns = Mapping[str, torch.Tensor]
"""Parameters of the rows of one policy: field name -> [rows, 1], or [rows, longest] for lists."""


@dataclass(frozen=True)
class Rows:
    """The rows of a batch that one policy serves.

    Args:
        logits: [rows, vocab] base-law logits, nats; -inf is a token without probability: masked by a
            grammar or by min_new_tokens, or banned by the request's logit_bias (-100 or less).
        kappa: [rows, 1] inverse temperature of the request.
        index: [rows, 1] int64, how many tokens of the answer precede this one.
        ends_line: [rows, 1] bool, whether the tokens before end a line (a newline, and nothing but spaces
            and tabs after it); for policies that need "ends_line".
        memory: [rows, 1] int64, what `Action.memory` said of the same request before, -1 at first; for
            policies that need "memory".
        twin: [rows, vocab] logits of the same answer behind the twin's prompt, NaN where there is none; for
            policies that need "twin".
    """

    logits: torch.Tensor
    kappa: torch.Tensor
    index: torch.Tensor
    ends_line: torch.Tensor | None = None
    memory: torch.Tensor | None = None
    twin: torch.Tensor | None = None

    @cached_property
    def log_p(self) -> torch.Tensor:
        """[rows, vocab] log p, the base law at temperature 1."""
        return self.logits.log_softmax(dim=-1)

    @cached_property
    def log_tempered(self) -> torch.Tensor:
        """[rows, vocab] log of the law at the request's temperature."""
        shifted = self.logits - self.logits.amax(dim=-1, keepdim=True)
        return (shifted * self.kappa).log_softmax(dim=-1)


@dataclass(frozen=True)
class Action:
    """What a policy does to its rows; None leaves things as they are.

    Args:
        kappa: [rows, 1] inverse temperature in place of the request's.
        keep: [rows, vocab] bool, the kept set; never empty.
        forced: [rows, 1] int64 token to emit where the row's logits allow it, -1 where it is drawn.
        memory: [rows, 1] int64, handed back with the request's next row. Rows may be computed more than
            once (retraction, overlap): the same index must lead to the same action again.
    """

    kappa: torch.Tensor | None = None
    keep: torch.Tensor | None = None
    forced: torch.Tensor | None = None
    memory: torch.Tensor | None = None


@dataclass(frozen=True)
class Row:
    """One row for `Policy.law`; fields as in Rows, [vocab] float64 where they are arrays."""

    logits: FloatArray
    temperature: float = 1.0
    ends_line: bool = False
    twin: FloatArray | None = None


class Policy(BaseModel, ABC):
    """Base of every policy; a subclass gives `sampler` its name as a Literal, with that default.

    Attributes:
        full_support: whether every token that p allows keeps a positive probability.
        needs: the optional fields of Rows that `act` reads.
        in_proposals: whether power sampling may draw its proposals with it: the law of a token must be a
            function of the tokens before it alone.
        examples: parameters for the law tests, which every registered policy has to pass.

    Args:
        seed: of the draws; below 2^64.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    full_support: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    in_proposals: ClassVar[bool] = True
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({},)

    sampler: str
    seed: Seed | None = None

    @classmethod
    def name(cls) -> str:
        """How requests name it."""
        return str(cls.model_fields["sampler"].default)

    def token_law(self, log_p: FloatArray, temperature: float) -> FloatArray:
        """`law` of a row of log probabilities, as `types.TokenPolicy` wants it."""
        return self.law(Row(log_p, temperature))

    @property
    def twin_prompt(self) -> tuple[str, str | list[int]] | None:
        """Of a policy that needs "twin": the field that holds the other prompt, and it, as text or ids."""
        return None

    @property
    def branching(self) -> dict[str, Any] | None:
        """Parameters of `branch` where the policy forks, which is no matter of one row; None where it never
        does."""
        return None

    @property
    def token_ids(self) -> dict[str, list[int]]:
        """Fields that hold token ids, which have to be in the served model's vocabulary."""
        return {}

    @property
    def parameters(self) -> dict[str, Any]:
        """The policy's own parameters, for the response and for the scheduler."""
        return self.model_dump(exclude={"sampler", "seed"})

    @classmethod
    def columns(cls, requests: Sequence[Self], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
        """The parameters of several requests as tensors; see Columns. Non-numeric fields are left out."""
        columns = {}
        for field in cls.model_fields.keys() - {"sampler", "seed"}:
            values = [getattr(request, field) for request in requests]
            if all(isinstance(value, bool) for value in values):
                columns[field] = torch.tensor(values)[:, None]
            elif all(isinstance(value, int | float) for value in values):
                columns[field] = torch.tensor([saturated(value, dtype) for value in values], dtype=dtype)[
                    :, None
                ]
        return columns

    @classmethod
    @abstractmethod
    def act(cls, rows: Rows, params: Columns) -> Action:
        """The rule on a batch of rows, without a host synchronisation."""

    @abstractmethod
    def law(self, row: Row) -> FloatArray:
        """[vocab] float64: the law of the drawn token, as the paper says it."""


# --- numpy, for the specifications ----------------------------------------------------------------------


def softmax(logits: FloatArray, temperature: float = 1.0) -> FloatArray:
    """[vocab] the law at a temperature, within MIN_TEMPERATURE and MAX_TEMPERATURE."""
    within = min(max(temperature, MIN_TEMPERATURE), MAX_TEMPERATURE)
    weights = np.exp((logits - logits.max()) / within)
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def entropy(p: FloatArray) -> float:
    """H = -sum p log p, nats."""
    support = p[p > 0]
    return float(-(support @ np.log(support)))


def truncated(p: FloatArray, keep: np.ndarray[Any, np.dtype[np.bool_]]) -> FloatArray:
    """p renormalised over a kept set."""
    kept = np.where(keep, p, 0.0)
    return np.asarray(kept / kept.sum(), dtype=np.float64)


# --- torch, for the rules -------------------------------------------------------------------------------


def saturated(value: float, dtype: torch.dtype) -> float:
    """The parameter, neither 0 nor infinite in `dtype` unless it is 0: 0/0 and 0 * inf are no numbers."""
    limits = torch.finfo(dtype)
    return math.copysign(min(max(abs(value), limits.tiny), limits.max), value) if value else 0.0


def entropy_of(log_p: torch.Tensor) -> torch.Tensor:
    """[rows, 1] H of laws given as [rows, vocab] log probabilities, nats."""
    return -(log_p.exp() * log_p.masked_fill(log_p == -math.inf, 0.0)).sum(dim=-1, keepdim=True)


def inverse(temperature: torch.Tensor) -> torch.Tensor:
    """1/T with T within MIN_TEMPERATURE and MAX_TEMPERATURE; NaN stays."""
    return 1.0 / temperature.clamp(MIN_TEMPERATURE, MAX_TEMPERATURE)


def top_tokens(logits: torch.Tensor) -> torch.Tensor:
    """[rows, vocab] bool: the most likely token, and all that tie with it."""
    return logits == logits.amax(dim=-1, keepdim=True)


def running_sum(weights: torch.Tensor) -> torch.Tensor:
    """[rows, vocab] float64 running sums of weights of at most 1.

    In fixed point: a floating-point scan on CUDA may add in another order on another rank.
    """
    return (weights * MASS_UNIT).long().cumsum(dim=-1).double() / MASS_UNIT


def top_mass(scores: torch.Tensor, p: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """[rows, vocab] bool: the fewest tokens of highest score whose probability p reaches `mass` [rows, 1],
    and all that tie with the last."""
    ranked, order = scores.sort(dim=-1, descending=True)
    reached = running_sum(p.gather(1, order))
    before_last = (reached < reached[:, -1:] * mass).sum(dim=-1, keepdim=True)
    return scores >= ranked.gather(1, before_last)


def first_ranked(scores: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """[rows, vocab] bool: the `count` [rows, 1] tokens of highest score, and all that tie with the last."""
    ranked = scores.sort(dim=-1, descending=True).values
    last = ranked.gather(1, (count - 1).clamp(0, scores.shape[1] - 1))
    return scores >= last
