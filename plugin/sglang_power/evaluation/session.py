"""One evaluation from its settings to its files: what is asked for, what is asked, what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import openai

from sglang_power.errors import ConfigError
from sglang_power.evaluation import arms as arms_of
from sglang_power.evaluation import page, plots
from sglang_power.evaluation.arms import Arm
from sglang_power.evaluation.asking import ALTERNATIVES, RETRIES, Asker, Route
from sglang_power.evaluation.catalogue import Api, Task
from sglang_power.evaluation.driver import Driver
from sglang_power.evaluation.folder import Folder
from sglang_power.evaluation.grading import Grader
from sglang_power.evaluation.prompts import Questions, questions
from sglang_power.evaluation.records import Run
from sglang_power.evaluation.report import report
from sglang_power.evaluation.results import Report
from sglang_power.evaluation.table import table

JSON: Final = "report.json"
PAGE: Final = "report.html"
PICTURE: Final = "report.png"


@dataclass(frozen=True)
class Server:
    """What is evaluated.

    Args:
        url: its base, without /v1.
        api_key: its key, if it has one.
        models: the names that it serves.
        has_plugin: whether samplers may be named.
        versions: of SGLang and the plugin.
        notes: what its state means for the run.
    """

    url: str
    api_key: str | None
    models: Sequence[str]
    has_plugin: bool
    versions: Mapping[str, str]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Settings:
    """What a command asks for; None leaves it to the task.

    Args:
        samplers: their names.
        params: by sampler.
        sweeps: sampler, parameter, values.
        samples, plain_samples: answers to each item; of `plain`, where these are others.
        limit, shots: the first so many items; examples before each.
        api, max_tokens, stop: how the server is asked.
        model: the served one where absent.
        seed: of the whole run.
        concurrency: requests at once.  timeout: seconds of an answer.
        fresh: throw away what is in the folder.
        alternatives: likely tokens that answers show; 0 for no entropies.
        hardware, command: for the report.
    """

    samplers: Sequence[str] = arms_of.DEFAULT
    params: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    sweeps: Sequence[tuple[str, str, Sequence[float | int | str]]] = ()
    samples: int = 1
    plain_samples: int | None = None
    limit: int | None = None
    shots: int = 0
    api: Api | None = None
    max_tokens: int | None = None
    stop: Sequence[str] | None = None
    model: str | None = None
    seed: int = 0
    concurrency: int = 16
    timeout: float = 3600.0
    fresh: bool = False
    alternatives: int = ALTERNATIVES
    hardware: str | None = None
    command: str = ""


@dataclass(frozen=True)
class Plan:
    """What a run is going to do.

    Args:
        run: its record.
        asked: the items as they are sent.
        route: how the server is asked.
    """

    run: Run
    asked: Questions
    route: Route


def plan(server: Server, task: Task, settings: Settings) -> Plan:
    """Return what a command asks for, checked.

    Raises:
        ConfigError: an unknown sampler or model, or nothing that this server can run.
        UnsupportedError: the extra `math` is missing and the task needs it.
    """
    api = settings.api or task.card.api
    asked = questions(task, api, settings.shots, settings.limit)
    items = [each.item for each in asked.asked]
    Grader.check(items)
    names, notes = _runnable(server, settings.samplers, arms_of.left_out(items, settings.samplers))
    params = arms_of.merged(task.card.samplers, settings.params)
    used = {name: values for name, values in params.items() if name in names or name in settings.params}
    arms = arms_of.build(names, items, used, settings.sweeps, settings.samples, settings.plain_samples)
    route = Route(
        model=_model(server, settings.model),
        api=api,
        max_tokens=settings.max_tokens or task.card.max_tokens,
        stop=asked.stop if settings.stop is None else tuple(settings.stop),
        has_plugin=server.has_plugin,
        alternatives=settings.alternatives,
    )
    return Plan(_run(server, task, settings, route, asked, arms, notes), asked, route)


def _run(
    server: Server,
    task: Task,
    settings: Settings,
    route: Route,
    asked: Questions,
    arms: Sequence[Arm],
    notes: Sequence[str],
) -> Run:
    return Run(
        task=task.name,
        model=route.model,
        api=route.api,
        max_tokens=route.max_tokens,
        stop=tuple(route.stop),
        seed=settings.seed,
        shots=settings.shots,
        has_plugin=server.has_plugin,
        alternatives=route.alternatives,
        items={each.item.id: each.digest for each in asked.asked},
        kinds={each.item.id: each.item.kind for each in asked.asked},
        arms=tuple(arms),
        left_out=task.left_out,
        concurrency=settings.concurrency,
        versions=dict(server.versions),
        hardware=settings.hardware,
        command=settings.command,
        notes=(*server.notes, *notes),
    )


def _runnable(server: Server, wanted: Sequence[str], senseless: Sequence[str]) -> tuple[list[str], list[str]]:
    """The samplers that are run, and what is to be said of the others."""
    notes = [
        f"{name} is not run: answers of this task are programs, no two of which are equal"
        for name in senseless
    ]
    names = [name for name in wanted if name not in senseless]
    if not server.has_plugin:
        lost = [name for name in names if name in arms_of.WHOLE]
        names = [name for name in names if name not in lost]
        if lost:
            notes.append(f"not run, since this server serves no sampler of the plugin: {', '.join(lost)}")
        notes.append(
            "draws without the plugin follow no seed: an answer that is asked for again is another one"
        )
    if not names:
        raise ConfigError("nothing is left to run: " + "; ".join(notes))
    return names, notes


def _model(server: Server, wanted: str | None) -> str:
    """The model's name; SGLang itself would take any."""
    if wanted is None:
        return server.models[0]
    if wanted not in server.models:
        raise ConfigError(f"--model {wanted}: {server.url} serves {', '.join(server.models)}")
    return wanted


async def evaluate(server: Server, planned: Plan, settings: Settings, folder: Folder) -> Report:
    """Ask what is missing, and write the report. What was answered is kept, whatever happens.

    Raises:
        PowerError: the server or the disk is gone, or the folder holds something else.
    """
    run = folder.begin(planned.run, fresh=settings.fresh)
    kept = folder.answers()
    client = openai.AsyncOpenAI(
        base_url=server.url + "/v1",
        api_key=server.api_key or "none",
        timeout=settings.timeout,
        max_retries=RETRIES,
    )
    grader = Grader()
    try:
        async with client:
            with folder:
                driver = Driver(Asker(client, planned.route), grader, folder, kept, planned.run.seed)
                await driver.run(planned.asked.asked, planned.run.arms, settings.concurrency)
    finally:
        await asyncio.to_thread(grader.close)
    closed = [f"programs of answers ran with the network closed by {how}" for how in sorted(grader.networks)]
    return write(run, folder, [*driver.missing.lines, *closed])


def write(run: Run, folder: Folder, missing: Sequence[str] = ()) -> Report:
    """Make the report of what a folder holds, and write its three files.

    Args:
        run: what was asked for.
        folder: with the answers.
        missing: what is to be said of those that there are not.

    Raises:
        ConfigError: there are no answers, or the files cannot be written.
    """
    made = report(table(run, folder.answers()), missing)
    picture = plots.drawn(made)
    try:
        made.write(folder.path / JSON)
        (folder.path / PICTURE).write_bytes(picture)
        (folder.path / PAGE).write_text(page.rendered(made, picture), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder.path} cannot be written: {error}") from error
    return made
