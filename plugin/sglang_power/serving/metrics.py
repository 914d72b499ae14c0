"""Prometheus metrics of power requests, prefix `sglang_power_`.

prometheus_client must not be imported before SGLang has set its multiprocess directory (it would freeze
every metric of the process), so it is imported with the first observation, and only where the server
exports metrics.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class _Metrics:
    requests: Any
    seconds: Any
    tokens: Any
    steps: Any


@functools.cache
def _metrics() -> _Metrics:
    from prometheus_client import Counter, Histogram

    return _Metrics(
        requests=Counter(
            "sglang_power_requests", "Chains ended, by what stopped them.", ["sampler", "stopped_by"]
        ),
        seconds=Histogram(
            "sglang_power_latency_seconds",
            "Wall clock of one chain.",
            ["sampler"],
            buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000),
        ),
        tokens=Counter("sglang_power_tokens", "Tokens of children, by kind.", ["sampler", "kind"]),
        steps=Counter(
            "sglang_power_steps", "Metropolis-Hastings steps, by decision.", ["sampler", "decision"]
        ),
    )


def observe(power: dict[str, Any], seconds: float, enabled: bool) -> None:
    """Count one ended chain from its `meta_info.power`."""
    if not enabled:
        return
    metrics, sampler = _metrics(), power["sampler"]
    metrics.requests.labels(sampler, power["stopped_by"]).inc()
    metrics.seconds.labels(sampler).observe(seconds)
    for kind in ("decoded", "prefilled", "wasted"):
        metrics.tokens.labels(sampler, kind).inc(power[f"{kind}_tokens"])
    metrics.steps.labels(sampler, "accepted").inc(power["accepted"])
    metrics.steps.labels(sampler, "rejected").inc(power["steps"] - power["accepted"])
