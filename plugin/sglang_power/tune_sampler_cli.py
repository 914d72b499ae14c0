"""The command `sglang-power tune sampler`: picks a sampler on a user's problems, writes it as a preset."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from sglang_power.errors import ConfigError
from sglang_power.eval_cli import EXTRA, RESUME, evaluated_server
from sglang_power.shared_cli import add_server, ended, failed, wrong_number

if TYPE_CHECKING:
    from sglang_power.evaluation.session import Server
    from sglang_power.sampler_tuning.outcome import Tuning
    from sglang_power.sampler_tuning.session import Settings

JSON: Final = "tuning.json"
PRESET: Final = "preset.yaml"

COUNTS: Final = ("budget", "limit", "max_tokens", "concurrency")


def add_sampler(commands: Any) -> None:
    """The options of `tune sampler`; how problems are put is as in `eval`."""
    parser = commands.add_parser(
        "sampler", help="the sampler that answers your problems best within a budget of tokens, as a preset"
    )
    parser.set_defaults(parser=parser)
    add = parser.add_argument
    add_server(parser, timeout_s=3600.0)
    add("--sample", required=True, metavar="FILE", help="problems with answers: JSONL, or a task of `eval`")
    add("--data", type=Path, metavar="FILE", help="the file of a data set, where --sample names one")
    add("--budget", type=int, required=True, metavar="TOKENS", help="decoded tokens of everything")
    add("--grid", metavar="JSON|FILE", help='candidates, e.g. {"plain": {}, "power": {"steps": [4, 16]}}')
    add("--limit", type=int, help="problems to use, from the top; by default all")
    add("--api", choices=("chat", "completions"), help="by default the task's; base models have no chats")
    add("--max-tokens", type=int, help="of an answer (the task's)")
    add("--stop", action="append", help="a string that ends an answer; may be given again (the task's)")
    add("--model", help="its name; by default the one that the server serves")
    add("--seed", type=int, default=0, help="of the parts and of all answers (default: %(default)s)")
    add("--concurrency", type=int, default=16, help="requests at once (default: %(default)s)")
    add("--name", default="tuned", help="of the preset (default: %(default)s)")
    add(
        "--output",
        type=Path,
        default=Path("tuning"),
        metavar="DIR",
        help=f"folder of the answers, of {JSON} and {PRESET}; what it holds is not asked again "
        "(default: %(default)s)",
    )
    add("--fresh", action="store_true", help="throw away the answers in --output")


def run_sampler(options: argparse.Namespace, command: str) -> int:
    """Tune; 0 with a preset, 1 where the server has no plugin, 2 where the run ended early."""
    if problem := wrong_number(options, COUNTS):
        options.parser.error(problem)
    return ended(lambda: _run(options, command), options.url, EXTRA, f"interrupted; {RESUME}")


def _run(options: argparse.Namespace, command: str) -> int:
    from sglang_power.evaluation.catalogue import load
    from sglang_power.evaluation.folder import Folder
    from sglang_power.sampler_tuning.session import plan, tune

    settings = _settings(options, command)
    task = load(options.sample, options.data)
    code, server = evaluated_server(options)
    if server is None:
        return code
    if not server.has_plugin:
        return failed("\n".join(_without_plugin(server)), 1)
    planned = plan(server, task, settings)
    for note in planned.plan.run.notes:
        print(note, file=sys.stderr)
    found = asyncio.run(tune(server, planned, settings, Folder(options.output)))
    return _tell(found, options)


def _without_plugin(server: Server) -> list[str]:
    return [*server.notes, "there is nothing to tune without the plugin's samplers"]


def _tell(found: Tuning, options: argparse.Namespace) -> int:
    """Print what was found, and write both files."""
    from sglang_power.sampler_tuning.outcome import lines, preset

    written = {
        options.output / JSON: found.model_dump_json(indent=1) + "\n",
        options.output / PRESET: preset(found, options.name),
    }
    print("\n".join(lines(found)))
    for path, text in written.items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")
    return 0


def _settings(options: argparse.Namespace, command: str) -> Settings:
    """What the options ask for.

    Raises:
        ConfigError: a grid that is none, or a file that cannot be read.
    """
    from sglang_power.evaluation import session as evaluation
    from sglang_power.sampler_tuning.grid import DEFAULT, checked
    from sglang_power.sampler_tuning.session import Settings

    asking = evaluation.Settings(
        limit=options.limit,
        api=options.api,
        max_tokens=options.max_tokens,
        stop=options.stop,
        model=options.model,
        seed=options.seed,
        concurrency=options.concurrency,
        timeout=options.timeout,
        fresh=options.fresh,
        alternatives=0,
        command=command,
    )
    grid = DEFAULT if options.grid is None else checked(_table(options.grid))
    name, digest = _sample(options)
    return Settings(grid=grid, budget=options.budget, sample=name, sample_sha256=digest, asking=asking)


def _sample(options: argparse.Namespace) -> tuple[str, str]:
    """The sample's file name and digest.

    Raises:
        ConfigError: there is no such file.
    """
    from sglang_power.evaluation.catalogue import BUILT_IN, built_in, digest_of

    path = options.data or Path(options.sample)
    if options.data is None and options.sample in built_in():
        path = BUILT_IN / f"{options.sample}.jsonl"
    try:
        return path.name, digest_of(path)
    except OSError as error:
        raise ConfigError(f"--sample {options.sample}: {error}") from error


def _table(told: str) -> Any:
    """A grid, of JSON, or of a file of YAML or JSON.

    Raises:
        ConfigError: it is neither.
    """
    try:
        is_json = told.lstrip().startswith("{")
        return json.loads(told) if is_json else yaml.safe_load(Path(told).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"--grid: {error}") from error
