"""Choices that the text generators make from a `numpy.random.Generator`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

__all__ = ["chance", "pick"]

_T = TypeVar("_T")


def chance(rng: np.random.Generator, probability: float) -> bool:
    """Say yes with the given probability."""
    return bool(rng.random() < probability)


def pick(rng: np.random.Generator, options: Sequence[_T]) -> _T:
    """Draw one of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]
