"""The server's own count of its forward passes, from SGLang's metrics.

`sglang:cuda_graph_passes_total` counts every forward pass by mode, with and without a CUDA graph: `prefill_*`
are extend passes (launches), `decode_*` decode passes. Servers without --enable-metrics count nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import httpx

METRIC: Final = "sglang:cuda_graph_passes_total"


@dataclass(frozen=True, slots=True)
class Passes:
    """Forward passes so far."""

    extend: float
    decode: float

    def since(self, before: Passes) -> Passes:
        """Return those after an earlier count."""
        return Passes(self.extend - before.extend, self.decode - before.decode)


async def passes(client: httpx.AsyncClient) -> Passes | None:
    """Return the passes of all ranks so far; None where the server does not say."""
    response = await client.get("/metrics", follow_redirects=True)
    return counted(response.text) if response.status_code == httpx.codes.OK else None


def counted(metrics: str) -> Passes | None:
    """Return the passes that a text of metrics names; None where it names none."""
    from prometheus_client.parser import text_string_to_metric_families

    samples = [
        sample
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == METRIC
    ]
    if not samples:
        return None
    extend, decode = (
        sum(sample.value for sample in samples if sample.labels["mode"].startswith(mode))
        for mode in ("prefill", "decode")
    )
    return Passes(extend, decode)
