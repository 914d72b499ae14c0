"""real.md: the figures of real.json as a page, with the targets that were set for them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = ["render", "targets"]

Json = Mapping[str, Any]

HEAD: Final = """\
# A real model: measured

Written by `python -m integration_tests.real.measure --write`; do not edit.
"""

LATENCY: Final = 4.0
"""Of fast-exact at one client, by a plain answer's."""

THROUGHPUT: Final = 1.5
"""Answers a minute of fast-exact by the naive client's, at eight clients."""


def targets(rows: Sequence[Json]) -> list[tuple[str, str, float, bool]]:
    """Return each target: what, its bound, what was measured, and whether it is met."""
    found = {(row["sampler"], row["concurrency"]): row for row in rows}
    latency = found["fast_exact", 1]["wall_vs_plain"]
    ratio = found["fast_exact", 8]["answers_per_minute"] / found["naive", 8]["answers_per_minute"]
    return [
        (
            "median latency of fast-exact by a plain answer's, one client",
            f"at most {LATENCY:g}",
            latency,
            latency <= LATENCY,
        ),
        (
            "answers of fast-exact by the naive client's, 8 clients",
            f"at least {THROUGHPUT:g}",
            ratio,
            ratio >= THROUGHPUT,
        ),
    ]


def render(record: Json) -> str:
    """Return the page.

    Args:
        record: as in real.json.
    """
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    single, launch = record["single"], record["launch"]
    step = launch["step_s"]
    return "\n".join(
        [
            HEAD,
            f"{record['model']}, in float32, answers of {record['tokens']} tokens. {record['hardware']}; "
            f"{versions}; `{record['command']}`.\n",
            "## Targets\n",
            "| target | bound | measured | result |",
            "| --- | --- | --- | --- |",
            *(
                f"| {what} | {bound} | {value:.2f} | {'met' if met else 'missed'} |"
                for what, bound, value, met in targets(record["rows"])
            ),
            "\n## Rows\n",
            "`naive` runs the chain of `power_uniform` as an HTTP client, by plain requests.\n",
            "| row | clients | p50 (s) | wall / plain | answers / min | decoded / returned "
            "| depth / returned | extend, decode passes / answer | answers |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
            *map(_line, record["rows"]),
            "\n## Steps and launches\n",
            f"- One decode step alone: {1e3 * step:.1f} ms. A plain answer whose prompt is cached: "
            f"{single['answer_s']:.2f} s.",
            f"- A batch of {record['batch']} plain answers, as many rows as fast-exact has particles: "
            f"{single['batch_s']:.2f} s, {single['batch_s'] / single['answer_s']:.2f} times one answer. "
            "Whatever draws as many answers side by side takes at least that on this machine.",
            "- From the last token of a child to the first token of the next one, its prefill included: "
            f"{launch['child_steps']:.2f} decode steps ({1e3 * step * launch['child_steps']:.0f} ms). "
            f"A plain request of one token over HTTP takes {launch['request_steps']:.2f} steps.\n",
        ]
    )


def _line(row: Json) -> str:
    passes = (row["extend_passes_per_answer"], row["decode_passes_per_answer"])
    shown = "" if None in passes else f"{passes[0]:.1f}, {passes[1]:.1f}"
    return (
        f"| {row['sampler']} | {row['concurrency']} | {row['p50_s']:.2f} | {row['wall_vs_plain']:.1f} "
        f"| {row['answers_per_minute']:.1f} | {row['decoded_per_returned']:.1f} "
        f"| {row['depth_per_returned']:.1f} | {shown} | {row['answers']} |"
    )
