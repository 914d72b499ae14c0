"""The command `sglang-power bench serve`: every way to an answer, side by side on one server.

Without --url it starts a server with the built-in model, which only a clone of the project has.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import httpx

from sglang_power.check_cli import status_of
from sglang_power.errors import ConfigError, PowerError
from sglang_power.extensions import install_extra
from sglang_power.gateways import server_of
from sglang_power.shared_cli import failed

if TYPE_CHECKING:
    from sglang_power.serve_benchmark.grid import Options
    from sglang_power.serve_benchmark.session import Results, Session
    from sglang_power.serve_benchmark.workloads import Workload

Benchmarks: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

EXTRA = ("scipy", "matplotlib")
"""Packages of the extra `[demo]` that the results need."""

BUILT_IN = Path("integration_tests", "benchmarks", "serve.py")
"""In a clone: the built-in model's problems and its server."""

SIZES = ("answers", "seconds", "concurrency", "ladder", "alphas", "particles", "runs", "prefetch", "horizons")
"""Options of the grid's size, none of which is 0 or below."""


def add_serve(benchmarks: Benchmarks) -> None:
    """The options of `bench serve`; defaults of the grid are its own."""
    serve = benchmarks.add_parser("serve", help="time, tokens and accuracy of every sampler, side by side")
    serve.set_defaults(parser=serve)
    _add_server(serve)
    _add_grid(serve)
    add = serve.add_argument
    add(
        "--output",
        type=Path,
        default=Path("serve_benchmark"),
        metavar="DIR",
        help="folder for serve.json, serve.md and the pictures; rows in serve.json that were measured with "
        "the same settings are kept (default: %(default)s)",
    )
    add("--fresh", action="store_true", help="measure every row again")
    add("--write", action="store_true", help="in a clone: renew the committed results and the guide")


def _add_server(serve: argparse.ArgumentParser) -> None:
    add = serve.add_argument
    add("--url", help="base URL of a running server; by default one is started with the built-in model")
    add("--api-key", default=os.environ.get("SGLANG_API_KEY"), help="the server's key (SGLANG_API_KEY)")
    add("--timeout", type=float, default=30.0, help="seconds until the server's status is known")
    add(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="prompts for --url: one a line, or (.jsonl) an object a line with text or prompt, and answer; "
        "by default the built-in model's problems",
    )
    add("--answer-regex", help="of --prompts: its first match, or the group of it, is the answer")
    add("--max-tokens", type=int, default=256, help="of an answer to --prompts (default: %(default)s)")
    add("--model-path", type=Path, metavar="DIR", help="weights for the published algorithm, with --url")
    add("--hardware", help="the machine of --url, in words; by default this one")


def _add_grid(serve: argparse.ArgumentParser) -> None:
    add = serve.add_argument
    add("--quick", action="store_true", help="few answers, short chains, one workload: does it run?")
    add("--workloads", nargs="+", metavar="NAME", help="by default all")
    add("--rows", nargs="+", metavar="NAME", help="beside `plain`; by default all")
    add("--answers", type=int, help="of a cell (64)")
    add("--seconds", type=float, help="after which a cell asks for no further answer (40)")
    add("--concurrency", type=int, nargs="+", help="clients at once, for every row (1 32)")
    add("--ladder", type=int, nargs="*", help="further ones for plain, power, fast_exact and smc (8)")
    add("--open-load", type=float, help="arrivals by throughput, of those rows; 0: no open loop (0.7)")
    add("--alphas", type=float, nargs="+", help="exponents (the workload's)")
    add("--particles", type=int, nargs="+", help="N of smc, each with each of --runs (8, 16 and 8 x 4 runs)")
    add("--runs", type=int, nargs="+", help="K of smc")
    add("--prefetch", type=int, nargs="+", help="proposals at once of a chain (8 32)")
    add("--horizons", type=int, nargs="+", help="max_new_tokens (the workload's)")


def run_serve(options: argparse.Namespace, command: str) -> int:
    """Measure and write; 1 where a cell failed, 2 where nothing could be measured."""
    try:
        return _run(options, command)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in EXTRA:
            raise
        return failed(f"{error.name} is missing: {install_extra('demo')}")
    except (PowerError, OSError, httpx.HTTPError, httpx.InvalidURL) as error:
        return failed(str(error) or repr(error))
    except KeyboardInterrupt:
        return failed("interrupted; the same command goes on where it ended", 130)


def _run(options: argparse.Namespace, command: str) -> int:
    """Put the parts together."""
    grid = _grid(options)
    built_in: Any = _built_in() if options.prompts is None else None
    workloads = _workloads(options, grid, built_in)
    if options.write:
        if built_in is None or options.url or options.quick:
            options.parser.error("argument --write: the committed results are those of the built-in model")
        options.output = built_in.RESULTS
    serving: AbstractContextManager[str] = nullcontext(str(options.url))
    if options.url is None:
        assert built_in is not None
        serving = built_in.served()
    with serving as url:
        code, session = _session(options, server_of(url), command, built_in)
        if session is None:
            return code
        results = _measured(session, workloads, grid)
    _tell(results)
    if options.write and built_in is not None:
        print(f"wrote {built_in.renew(results)}")
    return 1 if results.failed else 0


def _grid(options: argparse.Namespace) -> Options:
    """The size of the grid; a wrong option ends the command."""
    from sglang_power.serve_benchmark.grid import QUICK, Options, row_names

    for name in SIZES:
        told = getattr(options, name)
        values = told if isinstance(told, list) else [told]
        if any(value is not None and value <= 0 for value in values):
            options.parser.error(f"argument --{name}: must be above 0")
    if options.open_load is not None and not 0.0 <= options.open_load < 1.0:
        options.parser.error("argument --open-load: a share below 1, or 0")
    if any(alpha < 1.0 for alpha in options.alphas or ()):
        options.parser.error("argument --alphas: must be at least 1")
    named = {
        name: value for name in (*SIZES, "open_load", "rows") if (value := getattr(options, name)) is not None
    }
    grid = replace(QUICK if options.quick else Options(), **named)
    known = row_names(grid)
    if unknown := sorted(set(grid.rows) - set(known)):
        options.parser.error(f"argument --rows: {', '.join(unknown)}: choose among {', '.join(known)}")
    return grid


def _built_in() -> Any:
    """The module of the clone that this package stands in.

    Raises:
        ConfigError: it stands in none.
    """
    clone = Path(__file__).parents[2]
    if not (clone / BUILT_IN).is_file():
        raise ConfigError(
            "the built-in model and its problems are in a clone of sglang-power: name --url and --prompts"
        )
    sys.path.insert(0, str(clone))
    return importlib.import_module(".".join(BUILT_IN.with_suffix("").parts))


def _workloads(options: argparse.Namespace, grid: Options, built_in: Any) -> Sequence[Workload]:
    """What is asked; a wrong option ends the command."""
    from sglang_power.serve_benchmark.grid import workloads
    from sglang_power.serve_benchmark.workloads import read_workload

    if options.prompts is not None and options.url is None:
        options.parser.error("argument --prompts: needs --url")
    if built_in is None:
        base = [read_workload(options.prompts, options.max_tokens, options.answer_regex)]
    else:
        base = built_in.workloads(grid.answers, quick=options.quick)
    wanted = options.workloads or [workload.name for workload in base]
    if unknown := sorted(set(wanted) - {workload.name for workload in base}):
        known = ", ".join(workload.name for workload in base)
        options.parser.error(f"argument --workloads: {', '.join(unknown)}: choose among {known}")
    return workloads([workload for workload in base if workload.name in wanted], grid)


def _session(
    options: argparse.Namespace, url: str, command: str, built_in: Any
) -> tuple[int, Session | None]:
    """The run's place; None with an exit status where the server does not say that it has the plugin."""
    from sglang_power.serve_benchmark.session import Session, local_hardware

    headers = {} if options.api_key is None else {"Authorization": f"Bearer {options.api_key}"}
    with httpx.Client(headers=headers, timeout=options.timeout) as client:
        code, status = status_of(client, url, key_given=options.api_key is not None)
    if not isinstance(status, dict):
        return failed("\n".join(status), code), None
    own = options.url is None
    return 0, Session(
        url=url,
        headers=headers,
        status=status,
        folder=options.output,
        command=command,
        hardware=options.hardware or local_hardware(),
        model_path=options.model_path or (built_in.PIVOT_MODEL if own else None),
        own=own,
        fresh=options.fresh,
    )


def _measured(session: Session, workloads: Sequence[Workload], grid: Options) -> Results:
    from sglang_power.serve_benchmark.session import measure

    return asyncio.run(measure(session, workloads, grid))


def _tell(results: Results) -> None:
    """Print the verdicts and what has no figures."""
    from sglang_power.serve_benchmark.page import gap_lines, target_table

    print("\n".join([*target_table(results.record.rows), *gap_lines(results.not_served, results.failed)]))
    for path in results.paths:
        print(f"wrote {path}")
