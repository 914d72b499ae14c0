"""Where a Metropolis-Hastings proposal cuts the current sequence.

A cut m in {F..T-1} is the number of generated tokens that are kept; F tokens are frozen. Two laws:

uniform   cut(m|y) = 1/(T-F)                                      (Karan & Du, arXiv 2510.14901)
entropy   g_m = max(H_m - H_{m-1}, 0)^beta, H_{-1} = 0
          cut(m|y) = (1-eps) g_m / sum g + eps/(T-F)              (Entropy-Cut, arXiv 2605.30327)

eps > 0 keeps every cut possible, which the chain needs to be irreducible; uniform where sum g = 0.
H_m is the entropy of the row that token m was drawn from, so g_m depends on the kept prefix only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sglang_power.algorithms.triggers import entropy_jump
from sglang_power.errors import UnsupportedError
from sglang_power.rng import Key, Purpose
from sglang_power.types import FloatArray


class CutLaw(Protocol):
    """A law over cuts, given by non-negative gains g_m; `mixture` turns gains into probabilities."""

    @property
    def epsilon(self) -> float:
        """Share of the uniform law in the mixture; 1 means uniform."""
        ...

    def gain(self, entropy: float, previous: float) -> float:
        """g_m from H_m and H_{m-1}."""
        ...


@dataclass(frozen=True, slots=True)
class UniformCut:
    """Every kept length is equally likely."""

    @property
    def epsilon(self) -> float:
        return 1.0

    def gain(self, entropy: float, previous: float) -> float:  # noqa: ARG002  (the protocol's signature)
        return 0.0


@dataclass(frozen=True, slots=True)
class EntropyCut:
    """Cuts prefer the tokens at which entropy jumps up."""

    beta: float
    epsilon: float

    def gain(self, entropy: float, previous: float) -> float:
        return float(max(entropy_jump(entropy, previous), 0.0) ** self.beta)


def gains(law: CutLaw, entropy: FloatArray) -> FloatArray:
    """g_m for every m, from the entropies [T] of the whole sequence (nats).

    Raises:
        UnsupportedError: the law reads entropies, and the engine reports none.
    """
    if law.epsilon == 1.0:
        return np.zeros(len(entropy))
    if np.isnan(entropy).any():
        raise UnsupportedError("cut", law, "the engine reports no entropies", "Use the uniform cut")
    previous = np.concatenate([[0.0], entropy[:-1]])
    return np.array([law.gain(h, b) for h, b in zip(entropy, previous, strict=True)])


def mixture(epsilon: float, gain: float, total_gain: float, count: int) -> float:
    """log cut(m|y) from g_m, sum g and the number of possible cuts."""
    if epsilon == 1.0 or total_gain == 0.0:
        return -float(np.log(count))
    return float(np.log((1.0 - epsilon) * gain / total_gain + epsilon / count))


@dataclass(frozen=True, eq=False, slots=True)
class CutTable:
    """The law of the cuts of one sequence, for all that is asked of it.

    Args:
        gains: g_m, [T].
        log_probs: log cut(m|y), [T - F].
        frozen: F, tokens that no cut touches.
    """

    gains: FloatArray
    log_probs: FloatArray
    frozen: int

    def log_prob(self, m: int) -> float:
        """log cut(m|y)."""
        return float(self.log_probs[m - self.frozen])

    def draw(self, key: Key, step: int) -> int:
        """Draw a cut by an exponential race: m = argmin_m E_m / cut(m|y), E_m one number per position.

        The race keeps most cuts when the same random numbers meet a sequence of another length.
        """
        race = key.exponentials(step, Purpose.CUT, len(self.gains))[self.frozen :]
        return self.frozen + int(np.argmin(np.log(race) - self.log_probs))


def table(law: CutLaw, entropy: FloatArray, frozen: int = 0) -> CutTable:
    """The law of the cuts of a sequence with these entropies [T], with `frozen` tokens that stay."""
    g = gains(law, entropy)
    free = g[frozen:]
    total, count = float(free.sum()), len(free)
    if law.epsilon == 1.0 or total == 0.0:
        return CutTable(g, np.full(count, -np.log(count)), frozen)
    return CutTable(g, np.log((1.0 - law.epsilon) * free / total + law.epsilon / count), frozen)


def log_prob(law: CutLaw, m: int, entropy: FloatArray, frozen: int = 0) -> float:
    """log cut(m|y) for a sequence with these entropies [T], with `frozen` tokens that stay."""
    return table(law, entropy, frozen).log_prob(m)


def draw(law: CutLaw, key: Key, step: int, entropy: FloatArray, frozen: int = 0) -> int:
    """Draw a cut; as `CutTable.draw`."""
    return table(law, entropy, frozen).draw(key, step)
