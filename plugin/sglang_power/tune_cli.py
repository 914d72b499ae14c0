"""The commands `sglang-power tune`: `sampler`, and `thresholds`, which measures a model's `parameters`.

Of `thresholds`, `model_rows` measures and `tuning` computes; `tune_sampler_cli` has the other.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import httpx

import sglang_power
from sglang_power.check_cli import status_of
from sglang_power.errors import ConfigError
from sglang_power.gateways import server_of
from sglang_power.prompt_files import read_prompts
from sglang_power.shared_cli import add_prompts, add_server
from sglang_power.tune_sampler_cli import add_sampler, run_sampler

if TYPE_CHECKING:
    from sglang_power.model_rows import Measured

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

ROWS_PER_FIRING: Final = 20
"""Firings that a measurement should rest on."""


def add_tune(commands: Commands) -> None:
    """The options of `tune thresholds` and `tune sampler`."""
    tune = commands.add_parser("tune", help="measure the served model, or pick its sampler (the default)")
    kinds = tune.add_subparsers(dest="tuned", required=True)
    add_sampler(kinds)
    thresholds = kinds.add_parser(
        "thresholds",
        help="thresholds of branch triggers and of entropix, at which they fire at a share of the rows",
    )
    add = thresholds.add_argument
    add_server(thresholds, timeout_s=600.0)
    add_prompts(thresholds)
    add("--rate", type=float, default=0.05, help="share of the rows at which to fire (default: %(default)s)")
    add("--limit", type=int, default=64, help="prompts to use, from the top (default: %(default)s)")
    add("--max-tokens", type=int, default=256, help="of an answer (default: %(default)s)")
    add("--concurrency", type=int, default=8, help="requests at once (default: %(default)s)")
    add("-o", "--output", type=Path, metavar="FILE", help="where to write; by default to the terminal")
    thresholds.set_defaults(parser=thresholds)


def with_kind(arguments: list[str]) -> list[str]:
    """Return a command line in which `tune --OPTION ...` says `tune sampler --OPTION ...`."""
    match arguments:
        case ["tune", option, *_] if option.startswith("--") and option != "--help":
            return ["tune", "sampler", *arguments[1:]]
    return arguments


def run_tune(options: argparse.Namespace, command: str) -> int:
    """Run one of the two; 0 when its file is written."""
    return run_sampler(options, command) if options.tuned == "sampler" else run_thresholds(options)


def run_thresholds(options: argparse.Namespace) -> int:
    """Measure, and write the section; 0 when it is written."""
    from sglang_power.model_rows import measure  # Imports numpy, which the parser does without.

    if problem := _wrong_option(options):
        options.parser.error(problem)
    server = server_of(options.url)
    headers = {} if options.api_key is None else {"Authorization": f"Bearer {options.api_key}"}
    try:
        prompts = read_prompts(options.prompts, chat=options.chat, fewest=2)[: options.limit]
        with httpx.Client(base_url=server, headers=headers, timeout=options.timeout) as client:
            code, status = status_of(client, server, key_given=options.api_key is not None)
            if not isinstance(status, dict):
                print("\n".join(status), file=sys.stderr)
                return code
            measured = measure(
                client,
                status["served_model"],
                prompts,
                max_tokens=options.max_tokens,
                concurrency=options.concurrency,
            )
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        print(f"{server} does not answer: {error!r}", file=sys.stderr)
        return 2
    _write(_section(status["served_model"], measured, options), options.output)
    return 0


def _wrong_option(options: argparse.Namespace) -> str | None:
    if not 0.0 < options.rate < 1.0:
        return "argument --rate: a share above 0 and below 1"
    for name, least in (("limit", 2), ("max_tokens", 2), ("concurrency", 1)):
        if getattr(options, name) < least:
            return f"argument --{name.replace('_', '-')}: at least {least}"
    return None


def _section(served_model: str, measured: Measured, options: argparse.Namespace) -> str:
    from sglang_power import tuning

    rows = sum(map(len, measured.greedy))
    if rows * options.rate < ROWS_PER_FIRING:
        few = f"only {rows} rows: the thresholds rest on few of them; use more prompts or longer answers"
        print(few, file=sys.stderr)
    remarks = [
        f"sglang-power tune thresholds {sglang_power.__version__}, {time.strftime('%Y-%m-%d')}: "
        f"{len(measured.greedy)} prompts of {options.prompts.name}, target {options.rate:.1%} of the rows.",
        f"branch: {rows} rows of greedy answers; entropix: {sum(map(len, measured.drawn))} rows drawn at "
        "temperature 1.",
    ]
    branch = tuning.tuned(measured.greedy, options.rate)
    return tuning.section(served_model, branch, tuning.tuned(measured.drawn, options.rate), remarks)


def _write(text: str, output: Path | None) -> None:
    if output is None:
        print(text, end="")
        return
    output.write_text(text, encoding="utf-8")
    print(f"wrote {output}")
