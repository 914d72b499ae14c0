"""The command `sglang-power diagnose`: how far answers of `power` are from p^alpha, by number of steps."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import httpx

from sglang_power.check_cli import status_of
from sglang_power.gateways import server_of
from sglang_power.prompt_files import PromptLine, read_prompts
from sglang_power.shared_cli import add_prompts, add_server, ended, failed, wrong_number

if TYPE_CHECKING:
    from sglang_power.diagnosis.report import Diagnosis
    from sglang_power.diagnosis.session import Settings

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

EXTRA: Final = ("arviz_stats", "scipy")
"""Packages of the extra `[eval]` that a diagnosis needs."""


def add_diagnose(commands: Commands) -> None:
    """The options of `diagnose`; those of the sampler are its own where absent."""
    parser = commands.add_parser(
        "diagnose", help="bound the distance of power's answers to p^alpha, by number of steps"
    )
    parser.set_defaults(parser=parser)
    add = parser.add_argument
    add_server(parser, timeout_s=600.0)
    add_prompts(parser)
    add("--limit", type=int, default=8, help="prompts to use, from the top (default: %(default)s)")
    add("--replicas", type=int, default=64, help="pairs of chains a prompt (default: %(default)s)")
    add("--steps", type=int, default=32, help="steps to look at, behind the start (default: %(default)s)")
    add("--lag", type=int, help="steps that a pair's first chain is ahead; at least, and by default, --steps")
    add("--confidence", type=float, default=0.95, help="of each bound (default: %(default)s)")
    add("--concurrency", type=int, default=16, help="pairs at once (default: %(default)s)")
    add("--seed", type=int, default=0, help="of all pairs (default: %(default)s)")
    add(
        "--output",
        type=Path,
        default=Path("diagnosis"),
        metavar="DIR",
        help="folder of diagnosis.json, which is written after every prompt (default: %(default)s)",
    )
    _add_sampler(parser)


def _add_sampler(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--alpha", type=float, help="exponent of the target")
    add("--proposal-temperature", "--tau", type=float, help="of proposals; 1/alpha where absent")
    add("--cut", choices=("uniform", "entropy"), help="where proposals cut")
    add("--block-size", type=int, help="tokens of a stage; by default --max-tokens, so that there is one")
    add(
        "--start-steps",
        type=int,
        default=1,
        help="steps of the request that a chain starts with, in each stage (default: %(default)s)",
    )
    add("--max-tokens", type=int, default=128, help="of an answer (default: %(default)s)")
    add("--stop", action="append", default=[], help="a string that ends an answer; may be given again")


COUNTS: Final = (
    "limit",
    "replicas",
    "steps",
    "lag",
    "concurrency",
    "block_size",
    "start_steps",
    "max_tokens",
)


def run_diagnose(options: argparse.Namespace, command: str) -> int:
    """Diagnose; 0 with a report, 1 where the server has no plugin, 2 where the run ended early."""
    if problem := _wrong_option(options):
        options.parser.error(problem)
    return ended(
        lambda: _run(options, command),
        options.url,
        EXTRA,
        f"interrupted; what was done of whole prompts is in {options.output}",
    )


def _wrong_option(options: argparse.Namespace) -> str | None:
    if problem := wrong_number(options, COUNTS):
        return problem
    if not 0.0 < options.confidence < 1.0:
        return "argument --confidence: a probability above 0 and below 1"
    if options.lag is not None and options.lag < options.steps:
        return f"argument --lag: at least --steps ({options.steps}), or the bounds would not hold"
    return None


def _run(options: argparse.Namespace, command: str) -> int:
    prompts = read_prompts(options.prompts, chat=options.chat, fewest=1)[: options.limit]
    settings = _settings(options)
    server = server_of(options.url)
    headers = {} if options.api_key is None else {"Authorization": f"Bearer {options.api_key}"}
    with httpx.Client(headers=headers, timeout=min(options.timeout, 60.0)) as client:
        code, status = status_of(client, server, key_given=options.api_key is not None)
    if not isinstance(status, dict):
        return failed("\n".join(status), code)
    if status["refused"]:
        return failed("\n".join(status["refused"]), 1)
    from sglang_power.diagnosis.report import lines
    from sglang_power.diagnosis.session import JSON

    found = asyncio.run(_diagnosed(server, status, prompts, settings, options, command))
    print("\n".join(lines(found)))
    print(f"wrote {options.output / JSON}")
    return 0


async def _diagnosed(
    server: str,
    status: dict[str, Any],
    prompts: list[PromptLine],
    settings: Settings,
    options: argparse.Namespace,
    command: str,
) -> Diagnosis:
    from sglang_power.diagnosis.session import Run, Served
    from sglang_power.engines.http.connection import Connection, RemoteOptions

    connection = Connection(
        server,
        RemoteOptions(
            api_key=options.api_key, timeout_s=options.timeout, max_connections=2 * options.concurrency
        ),
    )
    own = {process["version"] for process in status["processes"] if process.get("version")}
    versions = {"sglang": str(status["sglang"]), "sglang-power": ", ".join(sorted(own))}
    try:
        served = Served(connection, status["served_model"], versions)
        return await Run(served, settings, options.output, command).diagnose(prompts)
    finally:
        await connection.aclose()


def _settings(options: argparse.Namespace) -> Settings:
    """What the options ask for; too few replicas end the command."""
    from sglang_power.diagnosis.bounds import replicas_for
    from sglang_power.diagnosis.report import TARGETS
    from sglang_power.diagnosis.serving import ChainRequest
    from sglang_power.diagnosis.session import Settings

    fewest = [replicas_for(target, options.confidence) for target in TARGETS]
    if options.replicas < fewest[0]:
        options.parser.error(
            f"argument --replicas: {options.replicas} pairs cannot bound a distance by "
            f"{TARGETS[0]:g} with {100 * options.confidence:g}% confidence, whatever they do; that takes "
            f"{fewest[0]}, and a bound of {TARGETS[1]:g} takes {fewest[1]}"
        )
    named = {
        "alpha": options.alpha,
        "proposal_temperature": options.proposal_temperature,
        "cut": options.cut,
        "block_size": options.block_size or options.max_tokens,
    }
    power = {name: value for name, value in named.items() if value is not None}
    request = ChainRequest(power, options.start_steps, options.max_tokens, tuple(options.stop))
    return Settings(
        request=request,
        replicas=options.replicas,
        lag=options.lag or options.steps,
        steps=options.steps,
        confidence=options.confidence,
        seed=options.seed,
        concurrency=options.concurrency,
    )
