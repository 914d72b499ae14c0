"""The command `sglang-power eval`: samplers on a task with known answers, through any running server."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import httpx
import yaml

from sglang_power.check_cli import status_of
from sglang_power.errors import ConfigError, PowerError
from sglang_power.gateways import INFO_ROUTE, json_object, server_of
from sglang_power.shared_cli import add_server, ended, failed

if TYPE_CHECKING:
    from sglang_power.evaluation.results import Report
    from sglang_power.evaluation.session import Server, Settings

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

EXTRA: Final = ("openai", "scipy", "matplotlib")
"""Packages of the extra `[eval]` that a run needs; math-verify is asked for where a task needs it."""

COUNTS: Final = ("samples", "plain_samples", "limit", "max_tokens", "concurrency")

RESUME: Final = "the same command goes on where it ended"


def add_eval(commands: Commands) -> None:
    """The options of `eval`; defaults of tasks and samplers are their own."""
    parser = commands.add_parser("eval", help="accuracy and cost of samplers on a task with known answers")
    parser.set_defaults(parser=parser)
    add = parser.add_argument
    add(
        "action",
        nargs="?",
        choices=("run", "tasks", "report"),
        default="run",
        help="run; tasks: list them, with where to get each and its checksum; report: make the report of "
        "--output anew",
    )
    add_server(parser, timeout_s=3600.0)
    add("--task", metavar="NAME", help="a task that `eval tasks` lists, or your own JSONL file")
    add("--data", type=Path, metavar="FILE", help="the file of a data set")
    add("--limit", type=int, help="items to ask, from the top; by default all")
    add("--shots", type=int, default=0, help="examples before each question, from the file's end")
    add(
        "--output",
        type=Path,
        default=Path("evaluation"),
        metavar="DIR",
        help="folder of the answers and the report; what it holds is not asked again (default: %(default)s)",
    )
    add("--fresh", action="store_true", help="throw away the answers in --output")
    _add_asking(parser)


def _add_asking(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--samplers", help="names, with commas between; `plain,lowtemp,greedy,power,smc,vote,best_of`")
    add("--samples", type=int, default=1, help="answers to each item (default: %(default)s)")
    add("--plain-samples", type=int, help="of plain, for controls at equal tokens (those of --samples)")
    add(
        "--params",
        metavar="JSON|FILE",
        help='parameters by sampler, e.g. {"power": {"steps": 20}, "smc": {"preset": "fast"}}',
    )
    add(
        "--sweep",
        action="append",
        default=[],
        metavar="SAMPLER.PARAMETER=V,V",
        help="a sampler under several values of a parameter; may be given again",
    )
    add("--api", choices=("chat", "completions"), help="by default the task's; base models have no chats")
    add("--max-tokens", type=int, help="of an answer (the task's)")
    add("--stop", action="append", help="a string that ends an answer; may be given again (the task's)")
    add("--model", help="its name; by default the one that the server serves")
    add("--seed", type=int, default=0, help="of all answers (default: %(default)s)")
    add("--concurrency", type=int, default=16, help="requests at once (default: %(default)s)")
    add("--no-confidence", action="store_true", help="ask for no alternatives; answers are much smaller")
    add("--hardware", help="the server's machine, in words, for the report")


def run_eval(options: argparse.Namespace, command: str) -> int:
    """Evaluate; 0 with a report, 1 where answers are missing in it, 2 where the run ended early."""
    return ended(lambda: _run(options, command), options.url, EXTRA, f"interrupted; {RESUME}")


def _run(options: argparse.Namespace, command: str) -> int:
    """Do one of the three things that the command does."""
    if options.action == "tasks":
        from sglang_power.evaluation.catalogue import listing

        print("\n".join(listing()))
        return 0
    if options.action == "report":
        return _tell(_again(options.output), options.output)
    if options.task is None:
        options.parser.error("argument --task: `sglang-power eval tasks` lists them")
    settings = _settings(options, command)
    from sglang_power.evaluation.catalogue import known_digest, load

    task = load(options.task, options.data)
    if options.data is not None and known_digest(options.task, options.data) is False:
        print(f"{options.data}: its checksum is none that `eval tasks` knows", file=sys.stderr)
    code, server = evaluated_server(options)
    if server is None:
        return code
    return _tell(_evaluated(server, task, settings, options.output), options.output)


def _evaluated(server: Server, task: Any, settings: Settings, output: Path) -> Report:
    """Run, and say how to go on where that ends early."""
    from sglang_power.evaluation.folder import Folder
    from sglang_power.evaluation.session import evaluate, plan

    planned = plan(server, task, settings)
    for note in planned.run.notes:
        print(note, file=sys.stderr)
    folder = Folder(output)
    try:
        return asyncio.run(evaluate(server, planned, settings, folder))
    except ConfigError:
        raise
    except PowerError as error:
        kept = f"{len(folder.answers())} answers are kept in {output}"
        raise PowerError(f"{error}\n{kept}; {RESUME}") from error


def _again(output: Path) -> Report:
    """The report of a folder, made anew without a server."""
    from sglang_power.evaluation.folder import RUN, Folder
    from sglang_power.evaluation.session import write

    folder = Folder(output)
    if (run := folder.run()) is None:
        raise ConfigError(f"{output} holds no {RUN}: no evaluation wrote to it")
    return write(run, folder)


def _tell(report: Report, output: Path) -> int:
    """Print the report; 1 where answers are missing."""
    from sglang_power.evaluation.session import JSON, PAGE, PICTURE
    from sglang_power.evaluation.wording import lines

    print("\n".join(lines(report)))
    for name in (JSON, PAGE, PICTURE):
        print(f"wrote {output / name}")
    return 1 if any(row.missing for row in report.rows) else 0


def _settings(options: argparse.Namespace, command: str) -> Settings:
    """What the options ask for; a wrong one ends the command."""
    from sglang_power.evaluation.arms import DEFAULT, parse_sweep
    from sglang_power.evaluation.asking import ALTERNATIVES
    from sglang_power.evaluation.session import Settings

    for name in COUNTS:
        if (told := getattr(options, name)) is not None and told < 1:
            options.parser.error(f"argument --{name.replace('_', '-')}: at least 1")
    if options.shots < 0 or options.seed < 0:
        options.parser.error("argument --shots, --seed: not below 0")
    names = [name.strip() for name in (options.samplers or ",".join(DEFAULT)).split(",") if name.strip()]
    return Settings(
        samplers=names,
        params=_params(options.params),
        sweeps=[parse_sweep(text) for text in options.sweep],
        samples=options.samples,
        plain_samples=options.plain_samples,
        limit=options.limit,
        shots=options.shots,
        api=options.api,
        max_tokens=options.max_tokens,
        stop=options.stop,
        model=options.model,
        seed=options.seed,
        concurrency=options.concurrency,
        timeout=options.timeout,
        fresh=options.fresh,
        alternatives=0 if options.no_confidence else ALTERNATIVES,
        hardware=options.hardware,
        command=command,
    )


def _params(told: str | None) -> dict[str, dict[str, Any]]:
    """The parameters by sampler, of JSON, or of a file of YAML or JSON.

    Raises:
        ConfigError: it is neither, or no table of tables.
    """
    if told is None:
        return {}
    try:
        is_json = told.lstrip().startswith("{")
        values = json.loads(told) if is_json else yaml.safe_load(Path(told).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"--params: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(table, dict) for table in values.values()):
        raise ConfigError('--params: a table by sampler is needed, e.g. {"power": {"steps": 20}}')
    return values


def evaluated_server(options: argparse.Namespace) -> tuple[int, Server | None]:
    """What the server says of itself; None with an exit status where it cannot be evaluated."""
    from sglang_power.evaluation.session import Server

    url = server_of(options.url)
    headers = {} if options.api_key is None else {"Authorization": f"Bearer {options.api_key}"}
    with httpx.Client(headers=headers, timeout=min(options.timeout, 60.0)) as client:
        code, status = status_of(client, url, key_given=options.api_key is not None)
        if not isinstance(status, dict) and code != 1:
            return failed("\n".join(status), code), None
        models = _models(client, url)
        info = json_object(client.get(url + INFO_ROUTE).text)
    if isinstance(status, dict):
        refused = list(status["refused"])
        own = {process["version"] for process in status["processes"] if process.get("version")}
        versions = {"sglang": status["sglang"], "sglang-power": ", ".join(sorted(own))}
        notes = [f"this server's flags rule samplers out: {reason}" for reason in refused]
    else:
        refused, versions, notes = status, {"sglang": str(info.get("version", "unknown"))}, list(status)
    server = Server(
        url=url,
        api_key=options.api_key,
        models=models,
        has_plugin=not refused,
        versions=versions,
        notes=notes,
    )
    return 0, server


def _models(client: httpx.Client, url: str) -> list[str]:
    """The names that a server serves.

    Raises:
        ConfigError: it names none.
    """
    told = json_object(client.get(f"{url}/v1/models").text).get("data") or []
    if not (names := [str(model["id"]) for model in told]):
        raise ConfigError(f"{url}/v1/models names no model")
    return names
