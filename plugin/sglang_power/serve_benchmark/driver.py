"""Runs the grid: cell by cell, each between two blocks of plain answers, and writes serve.json after each."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import numpy as np
from tqdm import tqdm

from sglang_power.errors import ConfigError, HostError, PowerError
from sglang_power.serve_benchmark.askers import Answer, Asker, NotServedError, PlainAsker, PluginAsker
from sglang_power.serve_benchmark.connection import Connection
from sglang_power.serve_benchmark.figures import Reference, figures
from sglang_power.serve_benchmark.grid import PLAIN, Options, RowSpec, row_specs
from sglang_power.serve_benchmark.loads import Block, closed, open_loop
from sglang_power.serve_benchmark.naive import ChainSettings, NaiveAsker
from sglang_power.serve_benchmark.passes import Passes, passes
from sglang_power.serve_benchmark.published_client import published
from sglang_power.serve_benchmark.record import Concurrency, Effort, Record, Row
from sglang_power.serve_benchmark.workloads import Task, Workload

PROBE_TOKENS: Final = 8
"""Of the answer that says whether a server knows a row's sampler and its parameters."""

REFERENCE_SHARE: Final = 0.25
"""Of a cell's seconds, for each block of plain answers beside it."""


@dataclass(frozen=True)
class Server:
    """What is measured.

    Args:
        model: its served name.
        presets: of its configuration.
        model_path: folder of the same weights, for the published algorithm.
        own: nobody else uses it: its cache is emptied before every cell, so that no row finds the prompts of
            the one before.
    """

    model: str
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    model_path: Path | None = None
    own: bool = False


@dataclass(frozen=True)
class Gap:
    """A row, or one of its cells, that has no figures, and why."""

    workload: str
    row: str
    reason: str

    def __str__(self) -> str:
        """Return a line of the results."""
        return f"{self.workload} {self.row}: {self.reason}"


@dataclass(frozen=True)
class Cell:
    """One measurement."""

    workload: Workload
    spec: RowSpec
    load: Concurrency

    def __str__(self) -> str:
        """Return what a progress bar shows."""
        load = "open loop" if self.load == "open" else f"x{self.load}"
        return f"{self.workload.name} {self.spec.name} {load}"


class Driver:
    """One run.

    Args:
        connection: to the server.
        server: see there.
        options: the grid's size.
        record: with the rows of an earlier run.
        path: of serve.json.
    """

    def __init__(
        self, connection: Connection, server: Server, options: Options, record: Record, path: Path
    ) -> None:
        self._connection, self._server, self._options = connection, server, options
        self._path = path
        self._beside: tuple[Workload, Concurrency, list[float]] | None = None
        self.record = record
        self.not_served: list[Gap] = []
        self.failed: list[Gap] = []

    async def run(self, workloads: Sequence[Workload]) -> None:
        """Measure every cell that the record does not hold yet."""
        for workload in workloads:
            cells = self._cells(workload)
            wanted = [cell for cell in cells if not self._is_measured(cell)]
            if len(wanted) < len(cells):
                _say(f"{workload.name}: {len(cells) - len(wanted)} of {len(cells)} cells are in the file")
            served = await self._served(workload, [cell.spec for cell in wanted])
            with tqdm(total=len(wanted), desc=workload.name, unit="cell", file=sys.stderr) as bar:
                for cell in wanted:
                    if cell.spec.name in served:
                        await self._attempt(cell)
                    bar.update()

    def _cells(self, workload: Workload) -> list[Cell]:
        """Every cell of a workload, load by load: what is compared is measured side by side."""
        specs = row_specs(workload, self._options)
        left_out = [spec for spec in specs if spec.name in workload.left_out]
        self.not_served += [Gap(workload.name, spec.name, workload.left_out[spec.name]) for spec in left_out]
        cells = [
            Cell(workload, spec, load)
            for spec in specs
            if spec not in left_out
            for load in spec.loads(self._options)
        ]
        return sorted(cells, key=lambda cell: (cell.load == "open", cell.load))

    async def _served(self, workload: Workload, specs: Sequence[RowSpec]) -> set[str]:
        """The names of the rows that the server knows; the others are told. The controls ask as they go."""
        served = {spec.name for spec in specs if spec.client in ("naive", "published")}
        for row in {spec.name: spec for spec in specs if spec.name not in served}.values():
            try:
                async with self._asker(row) as asker:
                    await asker.ask(workload.tasks[0].text, 0, min(PROBE_TOKENS, workload.max_new_tokens))
            except PowerError as error:
                self._miss(workload, row.name, error)
            else:
                served.add(row.name)
        return served

    @asynccontextmanager
    async def _asker(self, spec: RowSpec) -> AsyncIterator[Asker]:
        """Who asks for the answers of a row."""
        match spec.client:
            case "plain":
                yield PlainAsker(self._connection, spec.params)
            case "plugin":
                yield PluginAsker(self._connection, spec.params, spec.params.get("sampler"))
            case "naive":
                yield NaiveAsker(self._connection, ChainSettings.of(spec.params))
            case "published":
                async with published(self._server.model_path, ChainSettings.of(spec.params)) as asker:
                    yield asker

    def _is_measured(self, cell: Cell) -> bool:
        row = self._row(cell)
        return row is not None and (row.params, row.effort) == (
            self._shown(cell),
            self._effort(cell.workload),
        )

    def _row(self, cell: Cell) -> Row | None:
        """The record's row of a cell, however it was measured."""
        shown = self._shown(cell)
        place = (self._server.model, cell.workload.name, cell.spec.name, cell.load)
        key = (*place, shown.get("alpha"), shown["max_new_tokens"])
        return next((row for row in self.record.rows if row.key == key), None)

    def _shown(self, cell: Cell) -> dict[str, Any]:
        return cell.spec.shown(self._server.presets, cell.workload)

    def _tasks(self, workload: Workload) -> Sequence[Task]:
        return workload.tasks[: self._options.answers]

    def _effort(self, workload: Workload) -> Effort:
        answers, seconds = len(self._tasks(workload)), self._options.seconds
        return Effort(answers=answers, seconds=seconds, prompts=workload.prompts)

    async def _attempt(self, cell: Cell) -> None:
        """Measure one cell; what goes wrong is told, and the next one's turn comes."""
        try:
            row = await self._measured(cell)
        except* PowerError as group:
            first = group.exceptions[0]
            while isinstance(first, ExceptionGroup):
                first = first.exceptions[0]
            self._miss(cell.workload, f"{cell.spec.name} under load {cell.load}", first)
        else:
            self.record = self.record.with_row(row)
            self.record.write(self._path)
            _say(f"{cell}: {_told(row)}")

    def _miss(self, workload: Workload, row: str, error: BaseException) -> None:
        """Note what has no figures, and tell it at once, too."""
        gap = Gap(workload.name, row, (str(error) or repr(error)).partition(". ")[0])
        (self.not_served if isinstance(error, NotServedError) else self.failed).append(gap)
        _say(str(gap))

    async def _measured(self, cell: Cell) -> Row:
        """Measure one cell."""
        arrivals = self._arrivals(cell) if cell.load == "open" else None
        before = [] if arrivals or cell.spec.name == PLAIN else await self._plain(cell.workload, cell.load)
        async with self._asker(cell.spec) as asker:
            await self._flush()
            count = await self._passes(cell)
            block = await self._block(asker, cell, arrivals)
            after = await self._passes(cell)
        made = None if count is None or after is None else after.since(count)
        reference = Reference(await self._plain_s(cell, block, before), made)
        return Row(
            model=self._server.model,
            workload=cell.workload.name,
            sampler=cell.spec.name,
            params=self._shown(cell),
            concurrency=cell.load,
            arrivals_per_minute=arrivals,
            effort=self._effort(cell.workload),
            **figures(cell.workload, block, reference),
        )

    async def _block(self, asker: Asker, cell: Cell, arrivals: float | None) -> Block:
        """The answers of a cell, with a progress bar."""
        tasks, seconds = self._tasks(cell.workload), self._options.seconds
        ask = partial(_ask, asker, cell.workload)
        bar = tqdm(total=len(tasks), desc=str(cell), unit="answer", leave=False, file=sys.stderr)
        with bar:
            if cell.load == "open":
                assert arrivals is not None
                return await open_loop(ask, tasks, arrivals, seconds, bar.update)
            return await closed(ask, tasks, cell.load, seconds, bar.update)

    def _arrivals(self, cell: Cell) -> float:
        """Arrivals per minute of an open loop: a share of what the row was seen to answer."""
        busiest = self._row(Cell(cell.workload, cell.spec, max(self._options.concurrency)))
        if busiest is None:
            raise ConfigError("its throughput is not known: it has no figures under the largest closed load")
        return self._options.open_load * busiest.answers_per_minute

    async def _plain(self, workload: Workload, load: Concurrency) -> list[float]:
        """Latencies of plain answers under a load; those that were just measured, where they were."""
        assert load != "open"
        beside, self._beside = self._beside, None
        if beside is not None and beside[:2] == (workload, load):
            return beside[2]
        await self._flush()
        tasks = self._tasks(workload)[: max(16, 2 * load)]
        ask = partial(_ask, PlainAsker(self._connection, {}), workload)
        block = await closed(ask, tasks, load, REFERENCE_SHARE * self._options.seconds, _nothing)
        return [timed.seconds for timed in block.timed]

    async def _plain_s(self, cell: Cell, block: Block, before: Sequence[float]) -> float | None:
        """The median latency that a cell's is compared with."""
        if cell.spec.name == PLAIN:
            return float(np.median([timed.seconds for timed in block.timed]))
        if cell.load == "open":
            plain = self._row(Cell(cell.workload, row_specs(cell.workload, self._options)[0], "open"))
            return None if plain is None else plain.p50_s
        after = await self._plain(cell.workload, cell.load)
        self._beside = (cell.workload, cell.load, after)
        return float(np.median([*before, *after]))

    async def _passes(self, cell: Cell) -> Passes | None:
        """The server's passes so far; it has no part in the published algorithm's."""
        return None if cell.spec.client == "published" else await passes(self._connection)

    async def _flush(self) -> None:
        """Empty the server's cache, where nobody else uses it."""
        if self._server.own:
            reply = await self._connection.post("/flush_cache")
            if reply.status != HTTPStatus.OK:
                raise HostError(f"the cache cannot be emptied: {reply.message}")


async def _ask(asker: Asker, workload: Workload, task: Task, number: int) -> Answer:
    return await asker.ask(task.text, number, workload.max_new_tokens)


def _say(text: str) -> None:
    """Print a line above the progress bars, also where nobody but a file looks on."""
    tqdm.write(text)
    sys.stdout.flush()


def _nothing() -> None:
    """Show no progress of plain answers beside a cell."""


def _told(row: Row) -> str:
    accuracy = "" if row.accuracy is None else f", accuracy {row.accuracy:.2f}"
    wall = "" if row.wall_vs_plain is None else f", {row.wall_vs_plain:.1f}x plain"
    return f"{row.answers_per_minute:.0f} answers a minute, median {1e3 * row.p50_s:.0f} ms{wall}{accuracy}"
