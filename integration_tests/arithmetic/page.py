"""arithmetic.md: the figures of arithmetic.json as a page, the pivot families' beside them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = ["render"]

Json = Mapping[str, Any]

AGAINST: Final = ("plain", "lowtemp", "greedy", "best_of @ power", "vote @ power")
"""Runs that samplers are held against, pair by pair."""

PIVOT: Final = ("plain", "lowtemp", "greedy", "power", "smc", "fast_exact", "best_of @ power", "vote @ power")

HEAD: Final = """\
# Arithmetic: measured

Written by `python -m integration_tests.arithmetic.measure --write`; do not edit.

Multi-digit addition and multiplication with written-out steps, on problems that were held out of training
([what they look like](../arithmetic/problems.py)). The model errs because its training was stopped early, not
because its texts mix work and guesses; no sampler's parameters were tuned on this task.
"""


def render(record: Json, pivot: Json) -> str:
    """Return the page.

    Args:
        record: as in arithmetic.json.
        pivot: as in demo.json.
    """
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    parts = [
        HEAD,
        f"{record['problems']} problems; {record['hardware']}; {versions}; `{record['command']}`.\n",
        "\n".join(_correlation(record["correlation"])) + "\n",
        "## Accuracy and cost\n",
        "\n".join(_rows(record["rows"])) + "\n",
        "`best_of @ power` (by likelihood) and `vote @ power` have as many plain draws as decode the tokens "
        "of `power`; `vote` and `best_of` are the samplers of these names.\n",
        "## Paired tests\n",
        "The chance of as many wins as were seen, were both equally good (McNemar, exact, one-sided): small "
        "where the row's sampler is better than the column's.\n",
        "\n".join(_paired(record["paired_p"])) + "\n",
        "## Beside the pivot families\n",
        "Those are made to show the mechanism ([results](../../plugin/docs/results.md)).\n",
        "\n".join(_beside(record["rows"], pivot["rows"])) + "\n",
        "\n".join(f"- {row['sampler']}: {_told(row['params'])}" for row in record["rows"]) + "\n",
    ]
    return "\n".join(parts)


def _correlation(found: Json) -> list[str]:
    """Say what log p tells of being right, before anything else."""
    lines = ["## Does likelihood tell what is right?\n"]
    for name, words in (("mean_log_p", "log p per token"), ("log_p", "log p of the whole answer")):
        told = found[name]
        if told["r"] is None:
            lines.append(f"- {words}: all first draws are right, or all are wrong")
            continue
        low, high = told["ci95"]
        lines.append(
            f"- {words}: correlation with being right, over one plain draw per problem, {told['r']:.2f} "
            f"(95% {low:.2f} to {high:.2f}, p = {told['p']:.1e})"
        )
        if told["within"] is not None:
            lines.append(
                f"  - of a right and a wrong draw of the same problem, the right one is the likelier in "
                f"{told['within']:.0%} ({told['mixed']} problems that have both)"
            )
    return lines


def _rows(rows: Sequence[Json]) -> list[str]:
    lines = [
        "| sampler | accuracy (95% interval) | decoded / returned | depth / returned "
        "| acceptance | wall / plain |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        low, high = row["ci95"]
        accepted = "" if row["acceptance_rate"] is None else f"{row['acceptance_rate']:.2f}"
        lines.append(
            f"| {row['sampler']} | {row['accuracy']:.3f} ({low:.2f} to {high:.2f}) "
            f"| {row['decoded_per_returned']:.1f} | {row['depth_per_returned']:.1f} | {accepted} "
            f"| {row['wall_vs_plain']:.1f} |"
        )
    return lines


def _paired(found: Mapping[str, Json]) -> list[str]:
    lines = [f"| | {' | '.join(AGAINST)} |", f"| --- |{' --- |' * len(AGAINST)}"]
    for name, against in found.items():
        lines.append(f"| {name} | {' | '.join(f'{against[other]:.2g}' for other in AGAINST)} |")
    return lines


def _beside(rows: Sequence[Json], pivot: Sequence[Json]) -> list[str]:
    found = {("arithmetic", row["sampler"]): row["accuracy"] for row in rows}
    found |= {(row["suite"], row["sampler"]): row["accuracy"] for row in pivot}
    lines = ["| sampler | arithmetic | pivot Q | pivot R |", "| --- | --- | --- | --- |"]
    for sampler in PIVOT:
        cells = [found.get((suite, sampler)) for suite in ("arithmetic", "Q", "R")]
        shown = " | ".join("" if cell is None else f"{cell:.3f}" for cell in cells)
        lines.append(f"| {sampler} | {shown} |")
    return lines


def _told(params: Json) -> str:
    return ", ".join(f"{name}: {value}" for name, value in params.items())
