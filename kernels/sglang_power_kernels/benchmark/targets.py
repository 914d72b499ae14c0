"""The targets of the row functions, and whether measured times meet them.

Owns the limits. A target holds if it holds at every size that it covers; what a run has not measured is not
judged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from .measuring import Spread
from .workloads import POWER_ROW, SAMPLING, STATISTICS

ALL_BATCHES: Final = range(1, 257)
LARGE_BATCHES: Final = range(32, 257)
VOCABS: Final = range(32_000, 263_000)
COPY_FRACTION: Final = 0.7


@dataclass(frozen=True)
class Timing:
    """One candidate at one size, over the rounds; every ratio compares two times of the same round.

    Attributes:
        seconds: per call.
        bandwidth_gb_s: bytes of the logits, read once, over the median time.
        passes: time over that of reading the logits once at the measured copy bandwidth.
        byte_passes: bytes moved over the bytes of the logits, counted from the launches (Triton).
        to_stock: time over the stock sampler's, without logprobs.
        to_stock_logprobs: time over the stock sampler's with logprobs and top-2.
        to_reference: time over that of the naive reference of the same operation, where it was timed.
    """

    device: str
    batch: int
    vocab: int
    operation: str
    backend: str
    seconds: Spread
    bandwidth_gb_s: float
    passes: Spread
    byte_passes: float | None
    to_stock: Spread
    to_stock_logprobs: Spread
    to_reference: Spread | None


@dataclass(frozen=True)
class Target:
    """A figure that must not exceed its limit, for some calls of one backend at some sizes."""

    name: str
    device: str
    backend: str
    operations: tuple[str, ...]
    limit: float
    figure: Callable[[Timing], float | None]
    batches: range = ALL_BATCHES
    vocabs: range = VOCABS

    def covers(self, timing: Timing) -> bool:
        """Whether this timing is one that the target is about."""
        return (
            (timing.device, timing.backend) == (self.device, self.backend)
            and timing.operation in self.operations
            and timing.batch in self.batches
            and timing.vocab in self.vocabs
        )


@dataclass(frozen=True)
class TargetVerdict:
    """A target beside what was measured.

    Attributes:
        result: "met", "not met", "not measured" (no such size in the run) or "not run on CUDA".
        worst: the largest figure, and `worst_at` the call and size that it comes from.
        met_at: how many of the `measured_at` figures keep within the limit.
    """

    target: str
    limit: float
    result: str
    worst: float | None
    worst_at: str | None
    met_at: int
    measured_at: int


TARGETS: Final = (
    Target(
        "time of sampling and of statistics in passes, batch 32 to 256 (1 / 0.7: 70% of copy bandwidth)",
        "cuda",
        "triton",
        (SAMPLING, STATISTICS),
        1 / COPY_FRACTION,
        lambda timing: timing.passes.median,
        LARGE_BATCHES,
    ),
    Target(
        "bytes of sampling and of statistics in passes, batch 32 to 256",
        "cuda",
        "triton",
        (SAMPLING, STATISTICS),
        1.3,
        lambda timing: timing.byte_passes,
        LARGE_BATCHES,
    ),
    Target(
        "time of sampling + statistics over the stock sampler without logprobs, batch 32 to 256",
        "cuda",
        "triton",
        (POWER_ROW,),
        0.5,
        lambda timing: timing.to_stock.median,
        LARGE_BATCHES,
    ),
    Target(
        "time of sampling + statistics (torch) over the naive reference, vocabulary from 32k",
        "cpu",
        "torch",
        (POWER_ROW,),
        0.5,
        lambda timing: None if timing.to_reference is None else timing.to_reference.median,
    ),
    Target(
        "time of sampling + statistics (torch) over the stock sampler without logprobs, 8 x 151936",
        "cpu",
        "torch",
        (POWER_ROW,),
        0.3,
        lambda timing: timing.to_stock.median,
        range(8, 9),
        range(151_936, 151_937),
    ),
)


def judge(timings: Sequence[Timing], device: str) -> list[TargetVerdict]:
    """Return a verdict for every target of this type of device; on a CPU also name those left to a GPU."""
    verdicts = [_verdict(target, timings) for target in TARGETS if target.device == device]
    if device == "cpu":
        verdicts += [_unjudged(target, "not run on CUDA") for target in TARGETS if target.device == "cuda"]
    return verdicts


def _verdict(target: Target, timings: Sequence[Timing]) -> TargetVerdict:
    figures = [
        (figure, f"{timing.operation}, {timing.batch} x {timing.vocab}")
        for timing in timings
        if target.covers(timing) and (figure := target.figure(timing)) is not None
    ]
    if not figures:
        return _unjudged(target, "not measured")
    worst, worst_at = max(figures)
    met_at = sum(figure <= target.limit for figure, _ in figures)
    result = "met" if worst <= target.limit else "not met"
    return TargetVerdict(target.name, target.limit, result, worst, worst_at, met_at, len(figures))


def _unjudged(target: Target, reason: str) -> TargetVerdict:
    return TargetVerdict(
        target.name, target.limit, reason, worst=None, worst_at=None, met_at=0, measured_at=0
    )
