"""What a trigger that never fires costs: one step of 32 rows with and without it.

A step is what the plugin does to a batch: draw, row statistics, the copy to the host and the commit, where
triggers look at rows. Triggers run on the host only, so a GPU's work is the same with and without them.

    python -m integration_tests.benchmarks.triggers
"""

from __future__ import annotations

import argparse
import json
import timeit
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from sglang_power.algorithms.triggers import Trigger, TriggerMonitor, TriggerState, Watch
from sglang_power.sglang_host.child_params import ChildParams
from sglang_power.sglang_host.scheduler.drawing import draw_rows
from sglang_power.sglang_host.scheduler.rows import RowBlock
from sglang_power.sglang_host.scheduler.statistics import DeviceStatistics
from sglang_power.types import ProposalLaw
from sglang_power_kernels.benchmark.machine import describe_machine
from sglang_power_kernels.benchmark.measuring import Spread, time_rounds

from integration_tests.outputs import add_outputs, results_of

RESULTS = Path(__file__).parent / "results"
HISTORY = tuple(float(h) for h in range(3000))
"""Entropies of a long path: the quantile keeps them all."""

WATCHES: dict[str, Watch | None] = {
    "none": None,
    "entropy": Watch((Trigger("entropy", (1e9,)),)),
    "all": Watch(
        (
            *(Trigger(name, (1e9,)) for name in ("entropy", "varentropy", "ratio", "jump")),
            Trigger("quantile", (0.9999,)),
        ),
        TriggerState(position=len(HISTORY), history=HISTORY),
        start=len(HISTORY),
    ),
}
Step = Callable[[tuple[torch.Tensor, int]], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Time the steps and write triggers_<device>.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add_outputs(parser, "benchmarks", RESULTS)
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(options.batch, options.vocabulary, generator=generator).to(device)
    inputs = [(logits, position) for position in range(4096)]
    steps = {name: step(watch, options.batch, device) for name, watch in WATCHES.items()}
    seconds = time_rounds(steps, inputs, device, options.rounds)
    record = {
        "machine": describe_machine(device),
        "command": f"triggers --rounds {options.rounds} --batch {options.batch} "
        f"--vocabulary {options.vocabulary} --device {options.device}",
        "seconds_without": Spread.of(seconds["none"]).median,
        "host_microseconds_per_row": {
            name: microseconds_per_row(watch) for name, watch in WATCHES.items() if watch is not None
        },
        "ratios": {
            name: vars_of(Spread.of_ratios(seconds[name], seconds["none"]))
            for name in WATCHES
            if name != "none"
        },
    }
    (results_of(options) / f"triggers_{device.type}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    return 0


def microseconds_per_row(watch: Watch, count: int = 20_000) -> float:
    """Of the trigger alone, on the host."""
    monitor, row = TriggerMonitor(watch), [-0.1, -0.1, 0.0, 0.3, 0.2, 0.8, 0.8]
    positions = iter(range(watch.start, watch.start + count))
    return timeit.timeit(lambda: monitor.observe(next(positions), row), number=count) / count * 1e6


def vars_of(spread: Spread) -> dict[str, float]:
    """A spread as JSON."""
    return {"median": spread.median, "lower": spread.lower, "upper": spread.upper}


def step(watch: Watch | None, batch: int, device: torch.device) -> Step:
    """One step of a batch of children that carry a watch; every call commits one token more."""
    rules = () if watch is None else (watch,)
    params = [ChildParams(law=ProposalLaw(1.0), seed=i, origin=0, rules=rules) for i in range(batch)]
    block = RowBlock.of(*params)
    requests = [_request() for _ in range(batch)]
    committed = iter(range(1 << 30))

    def run(argument: tuple[torch.Tensor, int]) -> None:
        logits, position = argument
        positions = torch.full((batch,), position, dtype=torch.int64, device=device)
        drawn = draw_rows(logits, positions, block.on(device))
        host = DeviceStatistics(block, drawn.statistics).copy_to_host(lambda tensor: tensor.to("cpu"))
        index = next(committed)
        host.consume(SimpleNamespace(reqs=requests), [SimpleNamespace(output_index=index)] * batch)

    return run


def _request() -> Any:
    """What `consume` needs of a request."""
    return SimpleNamespace(customized_info=None, to_finish=None, output_ids=[], finished=lambda: False)


if __name__ == "__main__":
    raise SystemExit(main())
