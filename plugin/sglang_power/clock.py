"""The clock of deadlines: it goes forward only, whoever sets the machine's time. A leaf; knows nothing."""

from __future__ import annotations

import time


def now() -> float:
    """Return the seconds of a clock that cannot be set, from a moment that means nothing."""
    return time.monotonic()
