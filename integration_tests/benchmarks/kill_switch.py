"""How long after an operator's edit does the last tokenizer worker stop to enrol? The promise is two seconds.

A real server with two tokenizer workers; an experiment is killed and brought back again and again. Measured
from before the file is written to the later worker's own line in the log, written when it no longer enrols.

    python -m integration_tests.benchmarks.kill_switch
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sglang_power_kernels.benchmark.machine import describe_machine

from integration_tests.helpers.clients import eventually
from integration_tests.helpers.trials import WORKERS, Ground, Trials, ask
from integration_tests.outputs import add_outputs, results_of

RESULTS = Path(__file__).parent / "results"
NAME = "killed"
BOUND_S = 2.0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the delays and write kill_switch.json; 1 where the longest is beyond the bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    add_outputs(parser, "benchmarks", RESULTS)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        delays = measure(Ground(Path(folder)), options.kills)
    record = {
        "machine": describe_machine(torch.device("cpu")),
        "command": f"kill_switch --kills {options.kills}",
        "workers": WORKERS,
        "seconds": {"median": round(float(np.median(delays)), 3), "longest": round(max(delays), 3)},
        "bound": BOUND_S,
        "within_bound": max(delays) <= BOUND_S,
    }
    (results_of(options) / "kill_switch.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    return 0 if record["within_bound"] else 1


def measure(ground: Ground, kills: int) -> list[float]:
    """Seconds until no worker enrols, per kill."""
    ground.write(NAME)
    trials = Trials(ground)
    try:
        for _ in range(50):  # a worker reads its experiments with its first request
            ask(trials.server, {})
        return [delay(ground, kill=number % 2 == 0) for number in range(2 * kills)][::2]
    finally:
        trials.stop()


def delay(ground: Ground, *, kill: bool) -> float:
    """Seconds from an edit to the last worker's line about it."""
    began = time.time()
    ground.write(NAME, kill=kill)

    def taken() -> list[float]:
        return [line["at"] for line in ground.lines("change", NAME) if line["at"] >= began]

    eventually(lambda: len(taken()) == WORKERS, "both workers know")
    time.sleep(1.0)  # edits far apart, as an operator's are
    return max(taken()) - began


if __name__ == "__main__":
    raise SystemExit(main())
