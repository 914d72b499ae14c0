"""What an answer takes of a server, by sampler: the table of the guide `deploying`, from committed
measurements.

    python -m integration_tests.capacity --write

Owns the arithmetic from `results/serve.json` to that table; measures nothing itself.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path(__file__).parent / "results" / "serve.json"
GUIDE: Final = Path(__file__).parents[1] / "plugin" / "docs" / "deploying.md"
MARK: Final = "capacity"

ROWS: Final = ("plain", "power_uniform", "power_prefetch_8", "power", "smc", "smc_exact", "fast_exact")
"""Of the benchmark, those of samplers that a server runs."""

Row = Mapping[str, Any]


def rows_at_once(params: Mapping[str, Any]) -> int:
    """Return how many rows one answer decodes side by side, at most."""
    if params.get("sampler") == "smc":
        return int(params["particles"]) * int(params["runs"])
    return int(params.get("prefetch", 1))


def table(rows: Sequence[Row]) -> str:
    """Return the table: per answer, with one client, so that nothing waits for others.

    Decoded and prefilled tokens are the measured ratios times the measured length of an answer; the KV cache
    behind the prompt is at most `max_new_tokens` for every row that is decoded side by side.
    """
    lines = [
        "| row | tokens returned | decoded | prefilled | launches | rows at once "
        "| KV tokens behind the prompt, at most |",
        "|---|---|---|---|---|---|---|",
    ]
    alone = {row["sampler"]: row for row in rows if row["workload"] == "R" and row["concurrency"] == 1}
    for name in ROWS:
        if (row := alone.get(name)) is None:
            continue
        returned, side_by_side = row["returned_per_answer"], rows_at_once(row["params"])
        decoded, prefilled = (returned * row[f"{kind}_per_returned"] for kind in ("decoded", "prefilled"))
        most = side_by_side * row["params"]["max_new_tokens"]
        lines.append(
            f"| {name} | {returned:.0f} | {decoded:.0f} | {prefilled:.0f} "
            f"| {row['extend_passes_per_answer']:.0f} "
            f"| {side_by_side} | {side_by_side} x {row['params']['max_new_tokens']} = {most} |"
        )
    return "\n".join(lines)


def shown(results: Path = RESULTS) -> str:
    """Return what stands between the marks of the guide."""
    record = json.loads(results.read_text())
    source = "the committed `serve.json` of `sglang-power bench serve`"
    return f"{table(record['rows'])}\n\n{record['hardware']}; {source}."


def renewed(text: str, results: Path = RESULTS) -> str:
    """Return a guide with the table of the results between its marks."""
    before, rest = text.split(f"<!-- {MARK} -->\n")
    after = rest.split(f"<!-- /{MARK} -->")[1]
    return f"{before}<!-- {MARK} -->\n{shown(results)}\n<!-- /{MARK} -->{after}"


def main() -> None:
    """Print the table, or renew the guide."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"renew {GUIDE.name}")
    if parser.parse_args().write:
        GUIDE.write_text(renewed(GUIDE.read_text()))
    else:
        print(shown())


if __name__ == "__main__":
    main()
