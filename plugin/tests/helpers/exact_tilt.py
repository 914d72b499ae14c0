"""The oracle of the law tests with a reward: tilted configurations, kernels, targets and laws; see `exact`.

As there, the Hastings terms and the ratio are those that serve requests; what the target is, and in which
stage the reward acts, is written a second time here, from the design.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import exact
from sglang_power.algorithms import acceptance, mh
from sglang_power.algorithms.acceptance import HastingsTerms
from sglang_power.algorithms.mh import MHConfig
from sglang_power.algorithms.steps import ChainState
from sglang_power.algorithms.tilt import Tilt
from sglang_power.engines.tabular import Prefix, TabularModel
from sglang_power.types import Tokens

UPPER_BOUND = 2.0
"""Of `reward`."""

WEIGHT = 1.2

TermsOf = Callable[[MHConfig, ChainState, int, Tokens], HastingsTerms]
"""The Hastings terms of replacing what follows m tokens of the state by a suffix."""


def reward(ids: Prefix) -> float:
    """R of these tests: one for each of the last two tokens that is 1, less a tenth per token before them.

    So it sees the end of an answer, which no prefix knows, and its length.
    """
    return sum(token == 1 for token in ids[-2:]) - 0.1 * len(ids[:-2])


async def scored(ids: Sequence[int], finished: bool) -> float | None:
    """`reward` as a chain asks for it."""
    assert finished == (ids[-1] == 0)
    return reward(tuple(ids))


def tilted(config: MHConfig, weight: float = WEIGHT, upper_bound: float | None = UPPER_BOUND) -> MHConfig:
    """The same configuration with the reward."""
    return dataclasses.replace(config, tilt=Tilt(weight, upper_bound))


def running_terms(config: MHConfig, state: ChainState, m: int, suffix: Tokens) -> HastingsTerms:
    """The terms that the running code decides by."""
    known = dataclasses.replace(state, reward=reward(state.tokens.ids))
    return mh.tilted_terms(config, known, m, suffix, reward(state.tokens.ids[:m] + suffix.ids))


def ratio_of(terms: TermsOf) -> exact.Ratio:
    """The ratio of these terms."""
    return lambda config, state, m, suffix: acceptance.log_ratio(terms(config, state, m, suffix))


def kernel(model: TabularModel, config: MHConfig, frozen: int = 0) -> exact.Kernel:
    """The running code's kernel of a step of the last stage."""
    return exact.step_kernel(model, config, frozen=frozen, ratio=ratio_of(running_terms))


def target(model: TabularModel, config: MHConfig, frozen: int = 0) -> exact.Masses:
    """pi proportional to p^alpha * exp(lambda * R), on what the proposals reach."""
    assert config.tilt is not None
    weight = config.tilt.weight
    power = exact.target(model, config, frozen=frozen)
    return exact.normalised({y: mass * math.exp(weight * reward(y)) for y, mass in power.items()})


def chain_law(model: TabularModel, config: MHConfig, draft: Prefix | None = None) -> dict[Prefix, float]:
    """The law of a whole run: no stage but the last one knows the reward."""
    return exact.chain_law(model, config, draft=draft, last=kernel(model, config))
