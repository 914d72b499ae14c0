"""Prometheus metrics of power requests, prefix `sglang_power_`.

prometheus_client must not be imported before SGLang has set its multiprocess directory (it would freeze
every metric of the process), so it is imported with the first observation, and only where the server
exports metrics.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sglang_power.counting import tolerant

Ending = Literal["abort", "disconnect", "refused", "error"]
"""How a request ends that gives no answer; "refused" is SGLang's 400, after our own checks had passed."""


@dataclass(frozen=True)
class _Metrics:
    requests: Any
    seconds: Any
    tokens: Any
    steps: Any
    policies: Any
    fallbacks: Any
    kernels: Any
    passes: Any
    key_refusals: Any


@functools.cache
def _metrics() -> _Metrics:
    from prometheus_client import Counter as Total
    from prometheus_client import Histogram

    return _Metrics(
        requests=Total(
            "sglang_power_requests", "Chains ended, by what ended them.", ["sampler", "stopped_by"]
        ),
        seconds=Histogram(
            "sglang_power_latency_seconds",
            "Wall clock of one chain.",
            ["sampler"],
            buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000),
        ),
        tokens=Total("sglang_power_tokens", "Tokens of children, by kind.", ["sampler", "kind"]),
        steps=Total("sglang_power_steps", "Metropolis-Hastings steps, by decision.", ["sampler", "decision"]),
        policies=Total(
            "sglang_power_policy_answers",
            "Answers of a per-step policy, by their end.",
            ["sampler", "finish"],
        ),
        fallbacks=Total(
            "sglang_power_fallbacks",
            "Prompts that a default preset did not fit, and that SGLang answered itself.",
            ["reason"],
        ),
        kernels=Total(
            "sglang_power_kernel_calls",
            "Calls of sampling kernels, by backend.",
            ["backend", "function"],
        ),
        passes=Total(
            "sglang_power_passes",
            "Forward passes with rows of a sampler in them: extend (launches children), decode.",
            ["kind"],
        ),
        key_refusals=Total("sglang_power_key_refusals", "Prompts refused: their key had used its tokens."),
    )


@tolerant
def observe(power: dict[str, Any], seconds: float, enabled: bool) -> None:
    """Count one ended answer from its `meta_info.power`."""
    if not enabled:
        return
    metrics, sampler = _metrics(), power["sampler"]
    metrics.requests.labels(sampler, power["stopped_by"]).inc()
    metrics.seconds.labels(sampler).observe(seconds)
    for kind in ("decoded", "prefilled", "wasted"):
        metrics.tokens.labels(sampler, kind).inc(power.get(f"{kind}_tokens", 0))
    if "steps" in power:
        metrics.steps.labels(sampler, "accepted").inc(power["accepted"])
        metrics.steps.labels(sampler, "rejected").inc(power["steps"] - power["accepted"])


@tolerant
def observe_requests(sampler: str, ending: Ending, enabled: bool, chains: int) -> None:
    """Count chains that gave no answer."""
    if enabled and chains:
        _metrics().requests.labels(sampler, ending).inc(chains)


@tolerant
def observe_tokens(sampler: str, tokens: Mapping[str, int], enabled: bool) -> None:
    """Count tokens of children that no answer reports, by kind."""
    for kind, count in tokens.items() if enabled else ():
        _metrics().tokens.labels(sampler, kind).inc(count)


@tolerant
def observe_policy(policy: str, finish: str, enabled: bool, answers: int = 1) -> None:
    """Count answers of a per-step policy, by the type of their finish reason, or by their Ending."""
    if enabled and answers:
        _metrics().policies.labels(policy, finish).inc(answers)


@tolerant
def observe_fallback(reason: str, enabled: bool) -> None:
    """Count one prompt that ran on another sampler than the one that was meant for it."""
    if enabled:
        _metrics().fallbacks.labels(reason).inc()


@tolerant
def declare_fallbacks(reasons: Iterable[str], enabled: bool) -> None:
    """Start the counters of fallbacks at 0: `increase()` does not see the first count of a new series.

    Not to be called before the server has started; see the module.
    """
    for reason in reasons if enabled else ():
        _metrics().fallbacks.labels(reason)


@tolerant
def observe_pass(kind: Literal["extend", "decode"]) -> None:
    """Count one forward pass that had rows of a sampler in it."""
    _metrics().passes.labels(kind).inc()


@tolerant
def observe_key_refusal(enabled: bool) -> None:
    """Count one prompt whose key had no tokens left; keys are no label, since there may be any number."""
    if enabled:
        _metrics().key_refusals.inc()


class KernelMetrics:
    """Exports kernel calls of one process; knows how many it has exported."""

    def __init__(self) -> None:
        self._exported: Counter[str] = Counter()

    @tolerant
    def export(self, calls: Mapping[str, int]) -> None:
        """Bring the metric up to `calls`, keyed "<backend>.<function>"."""
        for name, count in calls.items():
            if new := count - self._exported[name]:
                _metrics().kernels.labels(*name.split(".")).inc(new)
                self._exported[name] = count
