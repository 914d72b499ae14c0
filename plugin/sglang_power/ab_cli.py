"""The commands `sglang-power ab ...`: experiments are checked, simulated, reported on and ramped.

Reads options, prints, and turns errors into one line and exit status 2. What needs the extra `[ab]` is
imported when a command runs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from pydantic import ValidationError

from sglang_power.ab_check_cli import add_check, earlier
from sglang_power.errors import ConfigError, PowerError
from sglang_power.extensions import install_extra

if TYPE_CHECKING:
    from sglang_power.experiments.analysis.reading import UnreadableLines
    from sglang_power.experiments.model import Experiment

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

EXTRA = ("ville", "scipy", "matplotlib")
"""Packages of the extra `[ab]` that the analysis imports."""


def add_ab(commands: Commands) -> None:
    """The options of `ab`."""
    ab = commands.add_parser("ab", help="A/B tests of samplers: check, simulate, report, ramp")
    inner = ab.add_subparsers(dest="ab_command", required=True)
    add_check(inner)
    _add_report(inner)
    _add_simulate(inner)
    _add_ingest(inner)
    _add_ramp(inner)


def run_ab(options: argparse.Namespace) -> int:
    """Run one of the commands; 2 where its input is bad."""
    try:
        status: int = options.run(options)
    except (PowerError, OSError) as error:
        return _failed(str(error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in EXTRA:
            raise
        return _failed(f"{error.name} is missing: {install_extra('ab')}")
    except KeyboardInterrupt:
        return 130  # As shells have it.
    return status


def _failed(problem: str) -> int:
    print(" ".join(problem.split()), file=sys.stderr)
    return 2


def _add_report(commands: Commands) -> None:
    report = commands.add_parser("report", help="what a log says of an experiment, and what to do")
    _add_experiment(report)
    report.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON, too")
    report.add_argument("--html", type=Path, metavar="FILE", help="write it as a page with plots, too")
    report.add_argument("--phase", type=int, help="of the ramp, from 0; by default the one in the state file")
    report.add_argument(
        "--now", type=_moment, help="as of when: seconds since 1970, or ISO 8601 with a time zone"
    )
    report.set_defaults(run=run_report)


def _add_experiment(command: argparse.ArgumentParser) -> None:
    command.add_argument("experiment", type=Path, metavar="EXPERIMENT", help="the experiment's YAML file")
    command.add_argument("--log", type=Path, required=True, metavar="DIR", help="directory of the log")
    command.add_argument(
        "--before",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="the file as it was under an older sglang-power, whose lines count where it assigns alike; "
        "repeat it",
    )


def _add_simulate(commands: Commands) -> None:
    simulate = commands.add_parser("simulate", help="false positives and power of an experiment, beforehand")
    simulate.add_argument("experiment", type=Path, metavar="EXPERIMENT", help="the experiment's YAML file")
    for name, told in (("base", "mean of the controls"), ("lift", "what the other arms add to it")):
        simulate.add_argument(
            f"--{name}",
            type=_metric_value,
            action="append",
            metavar="METRIC=VALUE",
            help=f"{told}; repeat it",
        )
    for name, kind, told in (
        ("units", int, "enrolled until the end"),
        ("units-per-day", float, "new ones"),
        ("requests-per-unit", float, "mean"),
        ("intra-unit-correlation", float, "between requests of a unit"),
        ("carry-over", float, "switchbacks: share of an effect that reaches into the next window"),
        ("runs", int, "simulated experiments"),
        ("seed", int, "of everything random"),
        ("looks", int, "how often the verdict is asked for"),
    ):
        simulate.add_argument(f"--{name}", type=kind, help=told)
    simulate.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON, too")
    simulate.set_defaults(run=run_simulate)


def _metric_value(text: str) -> tuple[str, float]:
    metric, _, value = text.partition("=")
    return metric, float(value)


def _add_ingest(commands: Commands) -> None:
    ingest = commands.add_parser("ingest", help="add outcomes that were measured elsewhere to a log")
    ingest.add_argument(
        "table",
        type=Path,
        metavar="TABLE",
        help=".csv or .jsonl: exposure_id (or unit and time), metric, value, at",
    )
    ingest.add_argument("--log", type=Path, required=True, metavar="DIR", help="directory of the log")
    ingest.add_argument(
        "--unit-key-env",
        default="SGLANG_POWER_UNIT_KEY",
        metavar="NAME",
        help="environment variable with the key that units are hashed with (default: %(default)s)",
    )
    ingest.add_argument(
        "--within",
        type=_seconds,
        metavar="SECONDS",
        help="how far the time of a row may be from its request (default: 60)",
    )
    ingest.set_defaults(run=run_ingest)


def _add_ramp(commands: Commands) -> None:
    ramp = commands.add_parser("ramp", help="go through the phases of a ramp; roll back on a guardrail")
    _add_experiment(ramp)
    ramp.add_argument("--every", type=_seconds, default=300.0, help="seconds (default: %(default)s)")
    ramp.add_argument("--once", action="store_true", help="look once, and end")
    ramp.set_defaults(run=run_ramp)


def _moment(text: str) -> float:
    try:
        moment = float(text)
    except ValueError:
        when = datetime.fromisoformat(text)
        if when.tzinfo is None:
            raise argparse.ArgumentTypeError(f"{text!r} has no time zone; add Z for UTC") from None
        moment = when.timestamp()
    if not 0.0 <= moment <= time.time():
        raise argparse.ArgumentTypeError(
            f"{text!r} is not between 1970 and now; give seconds, not milliseconds, or ISO 8601"
        )
    return moment


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 1.0 <= seconds <= 86_400.0:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 86400 seconds")
    return seconds


def run_report(options: argparse.Namespace) -> int:
    """Print the report; write it as JSON and as a page where asked to."""
    from sglang_power.experiments.analysis import page, show
    from sglang_power.experiments.analysis.ramp import check_phase
    from sglang_power.experiments.analysis.report import report_of
    from sglang_power.experiments.analysis.requests import joined, scope_of
    from sglang_power.experiments.catalogue import read_experiment
    from sglang_power.experiments.state import read_state, state_path

    experiment = read_experiment(options.experiment)
    state = state_path(options.experiment)
    phase = read_state(state).phase if options.phase is None else options.phase
    check_phase(experiment, phase, state if options.phase is None else "--phase")
    now = time.time() if options.now is None else options.now
    found = joined(options.log, scope_of(experiment, phase, now, earlier(options, {experiment.name})))
    report = report_of(found)
    _tell_unreadable(found.unreadable)
    print(show.text(report), end="")
    if options.json is not None:
        _write(options.json, report.model_dump_json(indent=1) + "\n")
    if options.html is not None:
        _write(options.html, page.rendered(report))
    return 0


def _tell_unreadable(unreadable: UnreadableLines) -> None:
    for told in unreadable.told:
        print(f"unreadable: {told}", file=sys.stderr)
    if more := unreadable.bad - len(unreadable.told):
        print(f"unreadable: {more:,} more lines", file=sys.stderr)


def _write(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8", newline="\n")
    print(f"wrote {path}")


def run_simulate(options: argparse.Namespace) -> int:
    """Print what would come of an experiment under assumptions; what is not given has its default there."""
    from sglang_power.experiments.analysis import show
    from sglang_power.experiments.analysis.simulate import simulate
    from sglang_power.experiments.analysis.traffic import Assumptions
    from sglang_power.experiments.catalogue import read_experiment

    experiment = read_experiment(options.experiment)
    given = {name: getattr(options, name, None) for name in Assumptions.model_fields}
    given |= {name: dict(given[name] or ()) for name in ("base", "lift")}
    try:
        assumptions = Assumptions(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise ConfigError(f"--{option}: {first['msg']}") from error
    result = simulate(experiment, assumptions)
    print(show.simulation(result), end="")
    if options.json is not None:
        _write(options.json, result.model_dump_json(indent=1) + "\n")
    return 0


def run_ingest(options: argparse.Namespace) -> int:
    """Write a table's outcomes into a log."""
    from sglang_power.experiments.analysis.ingest import WITHIN_S, ingest

    key = os.environ.get(options.unit_key_env)
    within_s = WITHIN_S if options.within is None else options.within
    written = ingest(
        options.table, options.log, now=time.time(), key=key.encode() if key else None, within_s=within_s
    )
    unmatched = f"; {written.unmatched:,} rows are of no enrolled request" if written.unmatched else ""
    print(f"wrote {written.rows:,} outcomes into {written.path}{unmatched}")
    return 0


def run_ramp(options: argparse.Namespace) -> int:
    """Look at the log again and again until the experiment is killed; the file may change meanwhile.

    A first look that fails ends the command. A later one is told and not the last: the servers go on, too,
    with the last good file, and somebody has to watch the guardrails.
    """
    experiment = _with_ramp(options.experiment)
    ended = _look(options, experiment)
    while not (ended or options.once):
        time.sleep(options.every)
        with _told("; it looks on with the file as it was before"):
            experiment = _with_ramp(options.experiment)
        with _told(f"; it looks again in {options.every:g} s"):
            ended = _look(options, experiment)
    return 0


def _with_ramp(path: Path) -> Experiment:
    from sglang_power.experiments.catalogue import read_experiment

    experiment = read_experiment(path)
    if not experiment.ramp:
        raise ConfigError(f"{path}, field 'ramp': the experiment has none")
    return experiment


def _look(options: argparse.Namespace, experiment: Experiment) -> bool:
    """Whether the experiment has ended."""
    from sglang_power.experiments.analysis.ramp import step

    before = earlier(options, {experiment.name})
    state, told = step(options.experiment, experiment, options.log, now=time.time(), before=before)
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC {experiment.name} {told}", flush=True)
    return state.killed or experiment.kill


@contextmanager
def _told(consequence: str) -> Iterator[None]:
    """Tell what goes wrong inside, and go on."""
    try:
        yield
    except (PowerError, OSError) as error:
        _failed(f"{error}{consequence}")
