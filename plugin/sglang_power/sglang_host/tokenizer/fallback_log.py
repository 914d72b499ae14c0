"""Tells operators of fallbacks: a counter per reason, and a line in the log for the first of each."""

from __future__ import annotations

import logging

from sglang_power.samplers.fallback import NEVER_MEANT, Fallback, FallbackReason
from sglang_power.server import metrics

logger = logging.getLogger("sglang_power")

_told: set[FallbackReason] = set()
"""Reasons that this process has logged."""


def count(fallback: Fallback, metrics_enabled: bool) -> None:
    """Count a fallback; log the first one of each reason in this process."""
    metrics.observe_fallback(fallback.reason, metrics_enabled)
    if fallback.reason in _told:
        return
    _told.add(fallback.reason)
    logger.log(
        logging.INFO if fallback.reason in NEVER_MEANT else logging.WARNING,
        "sglang-power: the default preset does not fit a request, which runs on SGLang's own sampler: %s. "
        'Further ones are counted only: sglang_power_fallbacks_total{reason="%s"}',
        fallback.message,
        fallback.reason,
    )
