"""The counter-based uniforms: an oracle, uniformity, and independence along both counters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sglang_power_kernels import KernelInputError, counter_uniforms

MASK = (1 << 64) - 1
SIZE = 100_000


def mix(bits: int) -> int:
    """SplitMix64's finaliser in Python integers."""
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & MASK
    return bits ^ (bits >> 31)


def oracle(seed: int, position: int) -> float:
    gamma = 0x9E3779B97F4A7C15
    start = mix((seed + gamma) & MASK)
    return (mix((start + (position + 1) * gamma) & MASK) >> 11) * 2.0**-53


def test_the_values_are_those_of_the_documented_generator() -> None:
    edges = [0, 1, -1, 2**63 - 1, -(2**63), 123456789, -987654321]
    pairs = [(seed, position) for seed in edges for position in edges]
    seeds, positions = (torch.tensor(column) for column in zip(*pairs, strict=True))
    assert counter_uniforms(seeds, positions).tolist() == [oracle(*pair) for pair in pairs]


@pytest.mark.parametrize("along", ["positions", "seeds", "diagonal"])
def test_uniform_and_without_serial_correlation(along: str) -> None:
    counter = torch.arange(SIZE)
    still = torch.full((SIZE,), 42)
    seeds = still if along == "positions" else counter
    positions = still if along == "seeds" else counter
    uniforms = counter_uniforms(seeds, positions).numpy()
    assert uniforms.min() >= 0
    assert uniforms.max() < 1
    assert stats.kstest(uniforms, "uniform").pvalue > 1e-3
    for lag in (1, 2, 7, 64):
        assert stats.pearsonr(uniforms[:-lag], uniforms[lag:]).pvalue > 1e-4
    pairs, _, _ = np.histogram2d(uniforms[:-1:2], uniforms[1::2], bins=32)
    assert stats.chisquare(pairs.ravel()).pvalue > 1e-3


def test_every_output_bit_changes_with_every_input_bit() -> None:
    base = torch.arange(2000)
    reference = (counter_uniforms(base, base) * 2**53).long()
    for bit in (0, 1, 31, 32, 62):
        for seeds, positions in ((base ^ (1 << bit), base), (base, base ^ (1 << bit))):
            changed = reference ^ (counter_uniforms(seeds, positions) * 2**53).long()
            flips = torch.stack([(changed >> output & 1).double().mean() for output in range(53)])
            assert flips.min() > 0.43
            assert flips.max() < 0.57


def test_a_pair_gives_the_same_number_in_any_slot() -> None:
    seeds, positions = torch.arange(100) * 31 - 7, torch.arange(100) ** 2
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    assert counter_uniforms(seeds, positions)[order].equal(counter_uniforms(seeds[order], positions[order]))


@pytest.mark.parametrize(
    ("seeds", "positions", "message"),
    [
        (
            torch.zeros(2),
            torch.zeros(2, dtype=torch.int64),
            r"seeds must be an int64 .* got float32 \[2\]; convert it",
        ),
        (
            torch.zeros(2, dtype=torch.int64),
            torch.zeros(2, dtype=torch.int32),
            "positions must be an int64 .*int32",
        ),
        (
            torch.zeros(2, dtype=torch.int64),
            torch.zeros(3, dtype=torch.int64),
            r"positions must match seeds, \[2\]",
        ),
        (3, torch.zeros(3, dtype=torch.int64), "seeds must be an int64 .* got int"),
    ],
)
def test_bad_counters_are_refused(seeds: torch.Tensor, positions: torch.Tensor, message: str) -> None:
    with pytest.raises(KernelInputError, match=message):
        counter_uniforms(seeds, positions)
