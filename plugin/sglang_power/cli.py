"""The command `sglang-power`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import sglang_power
from sglang_power.ab_cli import add_ab, run_ab
from sglang_power.bench_cli import add_serve, run_serve
from sglang_power.check_cli import add_check, run_check
from sglang_power.config_cli import add_config, run_config
from sglang_power.diagnose_cli import add_diagnose, run_diagnose
from sglang_power.errors import RecordError
from sglang_power.eval_cli import add_eval, run_eval
from sglang_power.hooks_cli import add_hooks, run_hooks
from sglang_power.tune_cli import add_tune, run_tune, with_kind

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run one command; the exit status says whether it succeeded."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="sglang-power", description="Power sampling for SGLang servers.")
    parser.add_argument("--version", action="version", version=sglang_power.__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    add_check(commands)
    add_config(commands)
    add_bench(commands)
    add_trace(commands)
    add_ab(commands)
    add_tune(commands)
    add_hooks(commands)
    add_eval(commands)
    add_diagnose(commands)
    options = parser.parse_args(with_kind(arguments))
    if options.command == "check":
        return run_check(options)
    if options.command == "config":
        return run_config(options)
    if options.command == "trace":
        return run_trace(options)
    if options.command == "ab":
        return run_ab(options)
    if options.command == "hooks":
        return run_hooks(options)
    command = shlex.join(["sglang-power", *arguments])
    if options.command == "tune":
        return run_tune(options, command)
    if options.command == "eval":
        return run_eval(options, command)
    if options.command == "diagnose":
        return run_diagnose(options, command)
    return (
        run_serve(options, command) if options.benchmark == "serve" else run_bench_kernels(options, command)
    )


def add_bench(commands: Commands) -> None:
    """The options of `bench kernels`; their values are checked by the benchmark, which knows the device."""
    bench = commands.add_parser("bench", help="measure this machine, or a served model")
    benchmarks = bench.add_subparsers(dest="benchmark", required=True)
    add_serve(benchmarks)
    kernels = benchmarks.add_parser(
        "kernels",
        help="time of sampling and statistics per backend, against SGLang's own sampler",
    )
    kernels.add_argument("--device", help="cpu, cuda or cuda:N; by default cuda where there is one")
    kernels.add_argument(
        "--batches", type=int, nargs="+", default=[1, 2, 8, 32, 128, 256], help="rows (default: %(default)s)"
    )
    kernels.add_argument(
        "--vocabs",
        type=int,
        nargs="+",
        default=[32_000, 151_936, 262_144],
        help="logits per row (default: %(default)s)",
    )
    kernels.add_argument("--backends", nargs="+", help="by default all that can run on the device")
    kernels.add_argument("--rounds", type=int, default=15, help="timings of each call (default: %(default)s)")
    kernels.add_argument("--threads", type=int, help="of torch on the CPU; by default as torch chooses")
    kernels.add_argument(
        "--output",
        type=Path,
        default=Path("kernel_benchmark"),
        metavar="DIR",
        help="folder for the JSON report and the page results.md (default: %(default)s)",
    )
    kernels.set_defaults(parser=kernels)


def add_trace(commands: Commands) -> None:
    """The options of `trace`."""
    trace = commands.add_parser("trace", help="draw a run: what was tried, what was kept, why it won")
    trace.add_argument(
        "record", type=Path, help="a record, or a response asked for with return_trace or return_tree"
    )
    trace.add_argument(
        "-o", "--output", type=Path, metavar="PAGE", help="the page; by default the record's name with .html"
    )
    trace.add_argument("--index", type=int, default=0, help="which answer of a response with several")
    trace.add_argument("--prompt", help="the prompt's text, which responses do not hold")
    trace.add_argument("--save-record", type=Path, metavar="FILE", help="write the record, too")


def run_trace(options: argparse.Namespace) -> int:
    """Write the page of a saved run; 2 where the file holds none."""
    from sglang_power import viewer  # Needs jinja2, which the other commands do without.

    page = options.output or options.record.with_suffix(".html")
    try:
        record = viewer.read_record(options.record.read_bytes(), index=options.index, prompt=options.prompt)
        written = {page: viewer.rendered(record, source=options.record.name)}
        if options.save_record is not None:
            written[options.save_record] = record.model_dump_json(indent=1) + "\n"
        for path, content in written.items():
            path.write_text(content, encoding="utf-8", newline="\n")
            print(f"wrote {path}")
    except RecordError as error:
        print(f"{options.record}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def run_bench_kernels(options: argparse.Namespace, command: str) -> int:
    """Time the row functions, print the verdicts on the targets, write the report; 0 when all of it ran."""
    from sglang_power_kernels import benchmark  # Imports torch, which the other commands do without.

    fail = options.parser.error
    try:
        settings = benchmark.Settings.checked(
            device=options.device,
            batches=options.batches,
            vocabs=options.vocabs,
            backends=options.backends,
            rounds=options.rounds,
            threads=options.threads,
        )
        options.output.mkdir(parents=True, exist_ok=True)
    except benchmark.SettingsError as error:
        fail(f"argument --{error.option}: {error}")
    except OSError as error:
        fail(f"argument --output: {error}")
    report = benchmark.run(settings, command=command)
    print("\n".join(benchmark.target_lines(report)))
    for path in benchmark.write(report, options.output):
        print(f"wrote {path}")
    return 0
