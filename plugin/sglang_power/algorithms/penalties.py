"""Penalties: a base law that depends on which tokens an answer already has.

Owns what the three penalties of a request are and, on one row in numpy, what they make of it; the rows of a
server are in `sglang_host.scheduler.penalties`. Knows no server.

The law is SGLang's, read as a function of the answer so far: with c_v the number of times that the answer has
token v in front of the row, and l its logits,

    l'_v = l_v - frequency * c_v - presence * 1[c_v > 0]
    l''_v = l'_v * repetition if l'_v < 0 else l'_v / repetition, where c_v > 0; l'_v elsewhere

and the base law is softmax(l''). Tokens of the prompt do not count, for none of the three: SGLang 0.5.20 to
0.5.23 counts those of the output alone, also for `repetition_penalty`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from sglang_power.types import FloatArray

PENALTIES = ("frequency_penalty", "presence_penalty", "repetition_penalty")
"""SGLang's sampling parameters that depend on the answer so far."""


@dataclass(frozen=True, slots=True)
class Penalties:
    """Penalties of one request; the defaults change nothing.

    Args:
        frequency: nats per occurrence.
        presence: nats, once.
        repetition: factor, above 0.
    """

    frequency: float = 0.0
    presence: float = 0.0
    repetition: float = 1.0

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Self | None:
        """Return the penalties that sampling parameters name; None where they change nothing."""
        frequency, presence, repetition = (params.get(name) for name in PENALTIES)
        found = cls(
            float(frequency or 0.0), float(presence or 0.0), 1.0 if repetition is None else float(repetition)
        )
        return None if found == cls() else found

    def flat(self) -> dict[str, float]:
        """Return them under SGLang's names."""
        return dict(zip(PENALTIES, (self.frequency, self.presence, self.repetition), strict=True))

    def acting(self) -> dict[str, float]:
        """Return those that change something."""
        neutral = type(self)().flat()
        return {name: value for name, value in self.flat().items() if value != neutral[name]}

    def act(self, logits: FloatArray, answer: Sequence[int]) -> FloatArray:
        """Return the logits of the base law, straight from the definition.

        Args:
            logits: [vocab] the model's, nats up to a constant that matters: `repetition` scales them.
            answer: tokens of the answer in front of the row.
        """
        changed = np.array(logits, dtype=np.float64)
        for token, count in Counter(answer).items():
            shifted = changed[token] - self.frequency * count - self.presence
            changed[token] = shifted * self.repetition if shifted < 0 else shifted / self.repetition
        return changed
