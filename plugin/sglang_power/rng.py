"""Counter-based random numbers: a draw is a function of (seed, chain, step, purpose).

No state, no clock: the same key gives the same numbers on any machine, whatever was drawn before,
so that decisions can be replayed. The generator is Philox 4x64 of numpy (Salmon et al., 2011).
"""

from __future__ import annotations

import enum
import secrets
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from sglang_power.types import FloatArray

SEED_BITS = 53
"""Seeds are echoed in JSON; JavaScript keeps integers exact up to 2^53."""


WORD = (1 << 64) - 1


class _Philox(threading.local):
    """A thread's one generator: moving it costs a tenth of making one."""

    def __init__(self) -> None:
        self._bits = np.random.Philox(key=0)
        self._generator = np.random.Generator(self._bits)

    def at(self, key: int, counter: tuple[int, int, int, int]) -> np.random.Generator:
        """Return it in the state of `Philox(key=key, counter=counter)`; draw from it before the next call."""
        state: Any = {  # numpy takes tuples, its annotations only arrays
            "bit_generator": "Philox",
            "state": {"counter": counter, "key": (key & WORD, key >> 64)},
            "buffer": (0, 0, 0, 0),
            "buffer_pos": 4,  # it is used up
            "has_uint32": 0,
            "uinteger": 0,
        }
        self._bits.state = state
        return self._generator


PHILOX = _Philox()


@enum.unique
class Purpose(enum.IntEnum):
    """What a draw is for; different purposes never share random numbers."""

    CUT = 1
    ACCEPT = 2
    PROPOSAL = 3
    EXTENSION = 4
    POLICY = 5
    TIE = 6
    READING = 7
    CHOICE = 8
    FORK = 9
    RESAMPLING = 10
    TRY = 11
    PICK = 12


@dataclass(frozen=True, slots=True)
class Key:
    """The random key of one chain of one request."""

    seed: int
    chain: int = 0

    def split(self, part: int, parts: int) -> Key:
        """Return the key of one of so many parts of a run; parts of all chains have different ones.

        Args:
            part: 0..parts-1.
            parts: the same number for every chain of the request.
        """
        return Key(self.seed, self.chain * parts + part)

    def _generator(self, step: int, purpose: Purpose) -> np.random.Generator:
        return PHILOX.at(self.seed, (0, self.chain, step, int(purpose)))

    def uniform(self, step: int, purpose: Purpose) -> float:
        """One uniform in [0, 1)."""
        return float(self._generator(step, purpose).random())

    def uniforms(self, step: int, purpose: Purpose, count: int) -> FloatArray:
        """`count` uniforms in [0, 1); a shorter request gives a prefix of a longer one."""
        return self._generator(step, purpose).random(count)

    def exponentials(self, step: int, purpose: Purpose, count: int) -> FloatArray:
        """`count` standard exponentials; a shorter request gives a prefix of a longer one."""
        return -np.log1p(-self.uniforms(step, purpose, count))

    def child_seed(self, step: int, purpose: Purpose) -> int:
        """A hashed 62-bit seed for an engine call, so that no call replays another's draws."""
        return int(self._generator(step, purpose).integers(0, 1 << 62))


def fresh_seed() -> int:
    """A seed from the operating system, for requests that name none."""
    return secrets.randbits(SEED_BITS)
