"""Memory of a server's processes while it serves: what each grows by with every request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil
from scipy import stats

EVERY_S = 5.0
WARM_UP = 1 / 3
"""Share of the requests that fill caches and pools; growth counts behind it."""

LEAST_SAMPLES = 5
"""Of a process; what is gone sooner grows no more."""

MOST_MB_PER_1000 = 1.0
MB = 1 << 20


@dataclass(frozen=True)
class Slope:
    """Growth of one process.

    Args:
        process: its title, and its pid.
        mb_per_1000: resident MB per 1,000 requests, by least squares.
        low, high: its 95% interval.
        last_mb: resident at the end.
    """

    process: str
    mb_per_1000: float
    low: float
    high: float
    last_mb: float


@dataclass
class Memory:
    """Resident memory of a process and all its descendants, by requests that have ended.

    Args:
        pid: of the server's first process.
    """

    pid: int
    _samples: dict[int, list[tuple[int, float]]] = field(default_factory=dict)
    _names: dict[int, str] = field(default_factory=dict)

    async def watch(self, requests: Callable[[], int]) -> None:
        """Take samples until cancelled.

        Args:
            requests: how many have ended by now.
        """
        while True:
            self.sample(requests())
            await asyncio.sleep(EVERY_S)

    def sample(self, requests: int) -> None:
        """Note what every process holds now."""
        first = psutil.Process(self.pid)
        for process in (first, *first.children(recursive=True)):
            try:
                resident, title = (
                    process.memory_info().rss / MB,
                    " ".join(process.cmdline()[:1]) or process.name(),
                )
            except psutil.NoSuchProcess:
                continue
            self._names.setdefault(process.pid, title.split("/")[-1])
            self._samples.setdefault(process.pid, []).append((requests, resident))

    def slopes(self) -> list[Slope]:
        """Return the growth of every process behind the warm-up, the steepest first."""
        lasting = [pid for pid in self._samples if len(self._warm(pid)) >= LEAST_SAMPLES]
        return sorted(map(self._slope, lasting), key=lambda slope: slope.mb_per_1000, reverse=True)

    def _warm(self, pid: int) -> list[tuple[float, float]]:
        """Return thousands of requests and resident MB, of the samples behind the warm-up."""
        most = max(requests for samples in self._samples.values() for requests, _ in samples)
        return [
            (requests / 1000, held) for requests, held in self._samples[pid] if requests >= most * WARM_UP
        ]

    def _slope(self, pid: int) -> Slope:
        samples = self._warm(pid)
        found = stats.linregress(*zip(*samples, strict=True))
        constant = len({held for _, held in samples}) == 1  # no correlation, so scipy has no error of it
        half = 0.0 if constant else float(stats.t.ppf(0.975, len(samples) - 2) * found.stderr)
        slope = float(found.slope)
        return Slope(f"{self._names[pid]} ({pid})", slope, slope - half, slope + half, samples[-1][1])
