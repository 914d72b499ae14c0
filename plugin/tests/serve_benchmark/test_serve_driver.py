"""The benchmark against a scripted server: rows, what is not served, resuming, failures. Error rate 0."""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from serve_rows import LENGTH, STATUS, ScriptedServer, custom_of, replied, workload
from sglang_power import cli
from sglang_power.routes import STATUS_ROUTE
from sglang_power.serve_benchmark import session
from sglang_power.serve_benchmark.connection import Reply
from sglang_power.serve_benchmark.driver import Driver, Server
from sglang_power.serve_benchmark.grid import Options
from sglang_power.serve_benchmark.record import Record, Row
from sglang_power.serve_benchmark.workloads import Workload

OPTIONS = Options(answers=6, seconds=3600.0, concurrency=(1, 2), ladder=(3,), open_load=0.5)
HERE = Record(hardware="here", versions={}, command="x")


async def driven(
    path: Path,
    scripted: ScriptedServer,
    options: Options = OPTIONS,
    *,
    own: bool = False,
    record: Record = HERE,
    asked: Sequence[Workload] | None = None,
) -> Driver:
    server = Server("m", STATUS["presets"], own=own)  # type: ignore[arg-type]
    driver = Driver(scripted, server, options, record, path / "serve.json")
    await driver.run([workload()] if asked is None else asked)
    return driver


def cells(rows: Sequence[Row]) -> set[tuple[str, object]]:
    return {(row.sampler, row.concurrency) for row in rows}


async def test_rows_that_the_server_knows_are_measured_and_the_others_are_named(tmp_path: Path) -> None:
    driver = await driven(tmp_path, ScriptedServer())
    ladder: list[object] = [1, 2, 3, "open"]
    expected = {(name, load) for name in ("plain", "power", "fast_exact") for load in ladder}
    expected |= {(name, load) for name in ("naive", "power_uniform") for load in (1, 2)}
    assert cells(driver.record.rows) == expected
    reasons = {gap.row: gap.reason for gap in driver.not_served}
    unknown = {"smc_8", "smc", "smc_exact", "perfect", "vote", "vote_decided"}
    unknown |= {"power_prefetch_8", "power_prefetch_32", "published under load 1"}
    assert set(reasons) == unknown
    assert reasons["smc"] == "sampler='smc': unknown"
    assert "--model-path" in reasons["published under load 1"]
    assert driver.failed == []
    assert cells(Record.read(tmp_path / "serve.json").rows) == expected


async def test_figures_come_from_reports_and_counters(tmp_path: Path) -> None:
    driver = await driven(tmp_path, ScriptedServer(), Options(rows=("power",), concurrency=(2,), ladder=()))
    found = {(row.sampler, row.concurrency): row for row in driver.record.rows}
    power = found["power", 2]
    assert (power.answers, power.accuracy, power.returned_per_answer) == (6, 0.5, LENGTH)
    assert (power.decoded_per_returned, power.prefilled_per_returned, power.depth_per_returned) == (10, 2, 5)
    assert (power.extend_passes_per_answer, power.decode_passes_per_answer) == (1, 3)
    assert power.params["alpha"] == 4.0
    assert found["plain", 2].wall_vs_plain == 1.0
    assert (found["plain", 2].decoded_per_returned, found["plain", 2].prefilled_per_returned) == (1, 0.5)
    assert found["power", "open"].arrivals_per_minute == pytest.approx(
        0.7 * power.answers_per_minute, rel=1e-3
    )
    assert found["power", 2].arrivals_per_minute is None


async def test_the_naive_client_counts_its_calls(tmp_path: Path) -> None:
    scripted = ScriptedServer()
    chain = {"alpha": 4.0, "proposal_temperature": 1.0, "block_size": 16, "steps": 3, "cut": "uniform"}
    options = Options(rows=("naive",), concurrency=(1,), ladder=(), open_load=0.0)
    driver = await driven(tmp_path, scripted, options, asked=[workload(4, chain=chain)])
    naive = next(row for row in driver.record.rows if row.sampler == "naive")
    assert naive.decoded_per_answer == 4 * LENGTH, "an extension and three proposals"
    depth = naive.depth_per_returned * naive.returned_per_answer
    assert depth == pytest.approx(4 * LENGTH + 4), "and a launch for each"
    assert naive.accuracy == 1.0
    calls = [body for body in scripted.asked if body.get("return_logprob")]
    assert len(calls) == 4 * 4
    assert next(body for body in calls if "input_ids" in body)["input_ids"][:3] == [1, 2, 3]
    assert {custom_of(body)["sampler"] for body in calls} == {"none"}


async def test_what_is_in_the_file_is_not_asked_for_again(tmp_path: Path) -> None:
    first = await driven(tmp_path, ScriptedServer(), Options(concurrency=(1,), ladder=(), rows=("power",)))
    again = ScriptedServer()
    second = await driven(
        tmp_path, again, Options(concurrency=(1, 2), ladder=(), rows=("power",)), record=first.record
    )
    assert cells(second.record.rows) == {
        (name, load) for name in ("plain", "power") for load in (1, 2, "open")
    }
    assert second.record.rows[: len(first.record.rows)] == first.record.rows
    silent = ScriptedServer()
    third = await driven(
        tmp_path, silent, Options(concurrency=(1, 2), ladder=(), rows=("power",)), record=second.record
    )
    assert silent.asked == []
    assert third.record.rows == second.record.rows


@pytest.mark.parametrize(
    "options",
    [{"answers": 5}, {"seconds": 7.0}],
    ids=["answers", "seconds"],
)
async def test_other_settings_are_measured_again(tmp_path: Path, options: dict[str, Any]) -> None:
    base: dict[str, Any] = {"concurrency": (1,), "ladder": (), "open_load": 0.0, "rows": ("power",)}
    first = await driven(tmp_path, ScriptedServer(), Options(**base))
    scripted = ScriptedServer()
    second = await driven(tmp_path, scripted, Options(**{**base, **options}), record=first.record)
    assert len(second.record.rows) == len(first.record.rows) == 2
    assert {row.effort for row in second.record.rows}.isdisjoint({row.effort for row in first.record.rows})


async def test_other_prompts_and_presets_are_measured_again(tmp_path: Path) -> None:
    options = Options(concurrency=(1,), ladder=(), open_load=0.0, rows=("fast_exact",))
    first = await driven(tmp_path, ScriptedServer(), options)
    moved = [row.model_copy(update={"params": {**row.params, "steps": 4}}) for row in first.record.rows]
    scripted = ScriptedServer()
    await driven(tmp_path, scripted, options, record=HERE.model_copy(update={"rows": tuple(moved)}))
    assert "fast-exact" in scripted.samplers()
    scripted = ScriptedServer()
    await driven(tmp_path, scripted, options, record=first.record, asked=[workload(5)])
    assert "fast-exact" in scripted.samplers()


async def test_a_cell_that_fails_is_told_and_the_next_one_is_measured(tmp_path: Path) -> None:
    def fails(body: dict[str, Any]) -> bool:
        return body.get("text") == "3:" and custom_of(body)["sampler"] == "power"

    options = Options(concurrency=(1,), ladder=(), open_load=0.5, rows=("power", "naive"))
    driver = await driven(tmp_path, ScriptedServer(fails), options)
    assert cells(driver.record.rows) == {("plain", 1), ("plain", "open"), ("naive", 1)}
    first, second = driver.failed
    assert first.row == "power under load 1"
    assert "500" in first.reason
    assert second.row == "power under load open"
    assert "no figures" in second.reason


async def test_answers_of_another_sampler_are_not_taken(tmp_path: Path) -> None:
    class Silent(ScriptedServer):
        def generate(self, body: dict[str, Any]) -> Reply:
            reply = super().generate(body)
            if reply.status != httpx.codes.OK:
                return reply
            told = reply.json()
            told["meta_info"].pop("power", None)
            return replied(told)

    options = Options(concurrency=(1,), ladder=(), open_load=0.0, rows=("power", "fast_exact"))
    driver = await driven(tmp_path, Silent(), options)
    assert cells(driver.record.rows) == {("plain", 1)}
    assert {gap.row for gap in driver.failed} == {"power", "fast_exact"}


@pytest.mark.parametrize("own", [True, False])
async def test_only_a_server_of_our_own_loses_its_cache(tmp_path: Path, own: bool) -> None:
    scripted = ScriptedServer()
    await driven(tmp_path, scripted, Options(concurrency=(1,), ladder=(), rows=("power",)), own=own)
    assert (scripted.flushed > 0) is own


async def test_a_row_that_makes_no_sense_is_left_out_with_its_reason(tmp_path: Path) -> None:
    scripted = ScriptedServer()
    options = Options(concurrency=(1,), ladder=(), open_load=0.0, rows=("power",))
    driver = await driven(tmp_path, scripted, options, asked=[workload(left_out={"power": "too long"})])
    assert [str(gap) for gap in driver.not_served] == ["W power: too long"]
    assert set(scripted.samplers()) == {"none"}


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> ScriptedServer:
    """A scripted server behind every client of the command."""
    server = ScriptedServer()

    def status(request: httpx.Request) -> httpx.Response:
        assert request.url.path == STATUS_ROUTE
        return httpx.Response(200, json=STATUS)

    @asynccontextmanager
    async def connected(url: str, headers: dict[str, str]) -> AsyncIterator[ScriptedServer]:
        assert (url, headers) == ("http://fake", {"Authorization": "Bearer key"})
        yield server

    made = functools.partial(httpx.Client, transport=httpx.MockTransport(status))
    monkeypatch.setattr(httpx, "Client", made)
    monkeypatch.setattr(session, "connected", connected)
    monkeypatch.setenv("SGLANG_API_KEY", "key")
    return server


def command(folder: Path, *more: str) -> list[str]:
    path = folder / "sums.jsonl"
    path.write_text("".join(f'{{"text": "{number}:", "answer": 1}}\n' for number in range(6)))
    given = [
        "--url",
        "http://fake/v1",
        "--prompts",
        str(path),
        "--answer-regex",
        r"A(\d)",
        "--hardware",
        "here",
    ]
    return ["bench", "serve", *given, "--output", str(folder / "out"), *more]


def test_the_command_measures_any_server(
    scripted: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = [
        "--concurrency",
        "1",
        "--ladder",
        "--open-load",
        "0",
        "--rows",
        "power",
        "smc",
        "--alphas",
        "2",
        "3",
    ]
    asked = command(tmp_path, *sizes)
    assert cli.main(asked) == 0
    folder = tmp_path / "out"
    names = {"serve.json", "serve.md", "serve_latency.png", "serve_load.png"}
    assert {path.name for path in folder.iterdir()} == names
    told = json.loads((folder / "serve.json").read_text())
    assert told["hardware"] == "here"
    assert told["versions"]["sglang-power"] == "0.1.0"
    assert told["command"].startswith("sglang-power bench serve --url")
    assert [(row["sampler"], row["params"].get("alpha")) for row in told["rows"]] == [
        ("plain", None),
        ("power", 2.0),
        ("power", 3.0),
    ]
    assert {row["workload"] for row in told["rows"]} == {"sums"}
    printed = capsys.readouterr().out
    assert "left out: sums smc: sampler='smc': unknown" in printed
    assert f"wrote {folder / 'serve.md'}" in printed
    before = len(scripted.asked)
    assert cli.main(asked) == 0
    assert {custom_of(body)["sampler"] for body in scripted.asked[before:]} == {"smc"}, "the rest is measured"
    assert cli.main([*asked, "--fresh"]) == 0
    assert "power" in scripted.samplers()[before + 2 :]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--answers", "0"], "argument --answers: must be above 0"),
        (["--concurrency", "1", "-1"], "argument --concurrency: must be above 0"),
        (["--open-load", "1.5"], "argument --open-load: a share below 1, or 0"),
        (["--alphas", "0.5"], "argument --alphas: must be at least 1"),
        (["--rows", "smd"], "argument --rows: smd: choose among plain, power"),
        (["--workloads", "R"], "argument --workloads: R: choose among sums"),
        (["--write"], "argument --write: the committed results are those of the built-in model"),
    ],
)
def test_a_wrong_argument_is_named(
    wrong: list[str],
    message: str,
    tmp_path: Path,
    scripted: ScriptedServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(command(tmp_path, *wrong))
    assert left.value.code == 2
    assert message in capsys.readouterr().err
    assert scripted.asked == []


def test_a_file_of_another_machine_ends_the_command(
    scripted: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    HERE.model_copy(update={"hardware": "there"}).write(tmp_path / "out" / "serve.json")
    assert cli.main(command(tmp_path)) == 2
    assert "--fresh" in capsys.readouterr().err
    assert scripted.asked == []
