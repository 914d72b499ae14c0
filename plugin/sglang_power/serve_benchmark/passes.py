"""The server's own count of its forward passes, from SGLang's metrics.

`sglang:cuda_graph_passes_total` counts every forward pass by mode, with and without a CUDA graph: `prefill_*`
are extend passes (launches), `decode_*` decode passes. Servers without --enable-metrics count nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from sglang_power.serve_benchmark.connection import Connection

METRIC: Final = "sglang:cuda_graph_passes_total"


@dataclass(frozen=True, slots=True)
class Passes:
    """Forward passes so far."""

    extend: float
    decode: float

    def since(self, before: Passes) -> Passes:
        """Return those after an earlier count."""
        return Passes(self.extend - before.extend, self.decode - before.decode)


async def passes(connection: Connection) -> Passes | None:
    """Return the passes of all ranks so far; None where the server does not say."""
    reply = await connection.get("/metrics")
    return counted(reply.text) if reply.status == HTTPStatus.OK else None


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
