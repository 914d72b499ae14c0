"""Counter-based uniforms: a pure function of (seed, position).

Owns the generator; knows nothing of logits. The same pair gives the same number on any device, in any batch
slot and in any batch, so a draw can be repeated without keeping a generator's state.
"""

from __future__ import annotations

import torch

from .checks import check_counter


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit constant."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def counter_uniforms(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return one uniform in [0, 1) per row, a function of that row's seed and position alone.

    SplitMix64 (Steele, Lea and Flood, OOPSLA 2014, with Stafford's mix 13), read at an arbitrary index
    instead of step by step, its start scrambled by the same finaliser so that neighbouring seeds are
    unrelated: `start = mix(seed + gamma)`, `u = (mix(start + (position + 1) * gamma) >>> 11) * 2^-53`,
    arithmetic modulo 2^64.

    Args:
        seeds: `[batch]` int64, any value.
        positions: `[batch]` int64, any value (the output position; callers fold other purposes into the
            seed).

    Returns:
        `[batch]` float64, multiples of 2^-53.

    Raises:
        KernelInputError: other dtypes, or shapes or devices that differ.

    >>> counter_uniforms(torch.tensor([7, 7]), torch.tensor([0, 1])).tolist() == [
    ...     counter_uniforms(torch.tensor([7]), torch.tensor([t])).item() for t in (0, 1)
    ... ]
    True
    """
    check_counter(seeds, positions)
    start = _mix(seeds + _GAMMA)
    bits = _mix(start + (positions + 1) * _GAMMA)
    return _shift_right(bits, 11).to(torch.float64) * 2.0**-53


def _shift_right(bits: torch.Tensor, count: int) -> torch.Tensor:
    """Logical shift: torch's `>>` on int64 copies the sign bit, which the mask removes."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _mix(bits: torch.Tensor) -> torch.Tensor:
    bits = (bits ^ _shift_right(bits, 30)) * _MIX_1
    bits = (bits ^ _shift_right(bits, 27)) * _MIX_2
    return bits ^ _shift_right(bits, 31)
