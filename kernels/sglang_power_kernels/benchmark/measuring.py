"""Timing in interleaved rounds.

Owns clocks, warm-up and medians. Every round times every candidate once, in alternating order and each on
the next of the rotating inputs, so that a busy machine slows all of them and no cache holds what one reads;
ratios are taken inside a round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Final, TypeVar

import numpy as np
import torch

WARM_UP_ROUNDS: Final = {"cpu": 1, "cuda": 3}
CALLS_PER_TIMING: Final = 10
"""On CUDA, where an event resolves half a microsecond."""
HOST_LEAD_CYCLES: Final = 10_000_000
"""The device waits about 5 ms before a timing, while the host enqueues: what is timed is the device."""

Key = TypeVar("Key", bound=Hashable)
Inputs = TypeVar("Inputs")


@dataclass(frozen=True)
class Spread:
    """Median and quartiles over the rounds."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        lower, median, upper = np.quantile(values, (0.25, 0.5, 0.75))
        return cls(median=float(median), lower=float(lower), upper=float(upper))

    @classmethod
    def of_ratios(cls, values: Sequence[float], bases: Sequence[float]) -> Spread:
        """Of the ratios round by round."""
        return cls.of([value / base for value, base in zip(values, bases, strict=True)])


def time_rounds(
    calls: Mapping[Key, Callable[[Inputs], object]],
    inputs: Sequence[Inputs],
    device: torch.device,
    rounds: int,
) -> dict[Key, list[float]]:
    """Return seconds per call, a value per candidate and round, after the warm-up."""
    seconds: dict[Key, list[float]] = {key: [] for key in calls}
    rotating = cycle(inputs)
    warm_up = WARM_UP_ROUNDS[device.type]
    for number in range(warm_up + rounds):
        for key in list(calls)[:: 1 if number % 2 == 0 else -1]:
            elapsed = timed(calls[key], rotating, device)
            if number >= warm_up:
                seconds[key].append(elapsed)
    return seconds


def timed(call: Callable[[Inputs], object], rotating: Iterator[Inputs], device: torch.device) -> float:
    """Seconds per call: of one call on the CPU, of several between events on CUDA."""
    if device.type == "cuda":
        return _device_seconds(call, [next(rotating) for _ in range(CALLS_PER_TIMING)], device)
    argument = next(rotating)
    start = time.perf_counter()
    call(argument)
    return time.perf_counter() - start


def _device_seconds(
    call: Callable[[Inputs], object], arguments: Sequence[Inputs], device: torch.device
) -> float:
    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        torch.cuda._sleep(HOST_LEAD_CYCLES)  # type: ignore[no-untyped-call]
        begin.record()
        for argument in arguments:
            call(argument)
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / len(arguments)
