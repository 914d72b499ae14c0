"""`sglang-power eval` on the real server: all samplers, an interrupt, a server that goes away. Error rate 0.

What is compared does not depend on time; draws depend on seeds alone where the arithmetic of batches does not
matter, and texts of the built-in model do not.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sglang_power import cli
from sglang_power.evaluation.catalogue import BUILT_IN, built_in, load
from sglang_power.evaluation.folder import ANSWERS
from sglang_power.evaluation.results import Report

from integration_tests.pivot.problems import problems, worked_completion
from integration_tests.server import Server
from integration_tests.tasks import publish, write

SAMPLERS = ("plain", "lowtemp", "greedy", "power", "smc", "perfect", "cot", "branch", "vote", "best_of")
PARAMS = {
    "power": {"steps": 2},
    "smc": {"particles": 4},
    "perfect": {"alpha": 1.5},
    "cot": {"k": 3},
    "vote": {"samples": 3},
    "best_of": {"samples": 3},
}
WAIT_S = 120.0
DRIFT = 2e-3
"""Of statistics of the same tokens in other batches."""


def command(url: str, output: Path, *more: str) -> list[str]:
    """Evaluate a few problems of family Q by all samplers."""
    base = [
        "eval",
        "--url",
        url,
        "--task",
        "pivot_q",
        "--output",
        str(output),
        "--params",
        json.dumps(PARAMS),
    ]
    return [*base, "--samplers", ",".join(SAMPLERS), "--limit", "3", "--concurrency", "6", *more]


def reported(folder: Path) -> Report:
    return Report.model_validate_json((folder / "report.json").read_bytes())


def kept(folder: Path) -> list[dict[str, Any]]:
    path = folder / ANSWERS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def timeless(report: Report) -> dict[str, Any]:
    """What does not depend on time: cancelled trials of `perfect` have decoded more or less."""
    told = report.model_dump(exclude={"load", "command", "controls"})
    for row in told["rows"]:
        if row["sampler"] == "perfect":
            del row["decoded"]
    return told


def differences(first: Any, second: Any, where: str = "report") -> list[str]:
    """Where two reports differ by more than what else was in a batch can do to a number."""
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        pairs = [(f"{where}.{name}", first[name], second[name]) for name in first]
    elif isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        pairs = [(f"{where}.{at}", *pair) for at, pair in enumerate(zip(first, second, strict=True))]
    elif isinstance(first, float) and isinstance(second, float):
        return [] if abs(first - second) <= DRIFT else [f"{where}: {first} and {second}"]
    else:
        return [] if first == second else [f"{where}: {first!r} and {second!r}"]
    return [found for name, a, b in pairs for found in differences(a, b, name)]


@contextmanager
def when_answered(folder: Path, count: int, act: Any) -> Iterator[None]:
    """Do something once a folder holds so many answers."""
    done = threading.Event()

    def watch() -> None:
        deadline = time.monotonic() + WAIT_S
        while not done.is_set() and time.monotonic() < deadline:
            if len(kept(folder)) >= count:
                act()
                return
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


@pytest.fixture(scope="module")
def whole(pivot_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("eval") / "whole"
    assert cli.main(command(pivot_server.url, folder)) == 0
    return folder


@pytest.mark.server
def test_every_sampler_answers_and_says_what_it_took(whole: Path) -> None:
    found = reported(whole)
    rows = {row.name: row for row in found.rows}
    assert tuple(rows) == SAMPLERS
    for answer in kept(whole):
        assert answer["log_p"] <= 0.0
        assert answer["entropy"] >= 0.0
        assert answer["power"]["sampler"] == rows[answer["arm"]].params["sampler"]
        assert answer["decoded"] >= answer["returned"] >= 1
        assert answer["depth"] >= answer["returned"]
    assert all(row.missing == 0 and row.problems == 3 for row in found.rows)
    assert rows["power"].acceptance[-1][0] >= 2 * 3, "two steps of the last stage, three answers"
    assert rows["vote"].decoded > rows["plain"].decoded
    assert found.versions.keys() == {"sglang", "sglang-power"}


@pytest.mark.server
def test_greedy_is_the_likeliest_row_by_row_and_has_the_lowest_entropy_bound(whole: Path) -> None:
    """The confidence of all samplers is of the same rows: the same answer to a problem has the same one."""
    by_text: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for answer in kept(whole):
        by_text.setdefault((answer["item"], answer["text"]), []).append(answer)
    shared = [group for group in by_text.values() if len(group) > 1]
    assert shared, "greedy, cot and branch meet"
    for group in shared:
        for measure in ("log_p", "entropy"):
            values = [answer[measure] for answer in group]
            assert values == pytest.approx([values[0]] * len(values), abs=DRIFT), (group[0]["text"], measure)


@pytest.mark.server
def test_an_interrupted_run_goes_on_and_comes_to_the_same(
    pivot_server: Server, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = len(kept(whole)) // 2
    with when_answered(tmp_path, half, lambda: os.kill(os.getpid(), signal.SIGINT)):
        assert cli.main(command(pivot_server.url, tmp_path)) == 130
    before = kept(tmp_path)
    assert half <= len(before) < len(kept(whole))
    path = tmp_path / ANSWERS
    path.write_bytes(path.read_bytes()[:-20])
    assert cli.main(command(pivot_server.url, tmp_path)) == 0
    assert kept(tmp_path)[: len(before) - 1] == before[:-1], "nothing was asked again but the torn line"
    assert differences(timeless(reported(tmp_path)), timeless(reported(whole))) == []
    capsys.readouterr()


@contextmanager
def forwarding(server: Server) -> Iterator[tuple[str, Any]]:
    """A port that forwards to a server until it is told to end: to clients, a server that dies."""
    target = urlsplit(server.url)
    listening = socket.create_server(("127.0.0.1", 0))
    pairs: list[socket.socket] = []

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listening.accept()
                upstream = socket.create_connection((target.hostname, target.port))
                pairs.extend((client, upstream))
                for ends in ((client, upstream), (upstream, client)):
                    threading.Thread(target=pump, args=ends, daemon=True).start()

    def end() -> None:
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        for each in pairs:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", end
    finally:
        end()


@pytest.mark.server
def test_a_server_that_goes_away_ends_the_run_and_it_goes_on(
    pivot_server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--samplers", "plain,greedy,smc", "--limit", "6", "--concurrency", "2")
    with forwarding(pivot_server) as (url, end), when_answered(tmp_path, 4, end):
        assert cli.main(command(url, tmp_path, *few)) == 2
    told = capsys.readouterr().err
    assert "the server does not answer any more" in told
    before = len(kept(tmp_path))
    assert f"{before} answers are kept in {tmp_path}; the same command goes on" in told
    assert 4 <= before < 18
    assert cli.main(command(pivot_server.url, tmp_path, *few)) == 0
    assert len(kept(tmp_path)) == 18


@pytest.mark.server
def test_a_server_without_the_plugin_answers_the_baselines(plain_server: Server, tmp_path: Path) -> None:
    assert cli.main(command(plain_server.url, tmp_path)) == 0
    found = reported(tmp_path)
    assert [row.name for row in found.rows] == ["plain", "lowtemp", "greedy"]
    assert any("without the plugin" in note for note in found.notes)
    assert {answer["arm"] for answer in kept(tmp_path) if answer["log_p"] is None} == {"lowtemp"}
    assert all(answer["entropy"] is not None for answer in kept(tmp_path))


@pytest.mark.server
def test_chats_are_evaluated_too(prose_server: Server, tmp_path: Path) -> None:
    asked = ["eval", "--url", prose_server.url, "--task", "prose", "--limit", "4", "--output", str(tmp_path)]
    assert cli.main([*asked, "--samplers", "plain,greedy,smc"]) == 0
    found = {row.name: row for row in reported(tmp_path).rows}
    assert found["greedy"].accuracy.value >= 0.5, "the model was taught these facts"
    assert all(answer["entropy"] is not None for answer in kept(tmp_path))


# --- without a server ---


@pytest.mark.parametrize("name", list(write.TASKS))
def test_the_files_of_built_in_tasks_are_what_the_generator_writes(name: str) -> None:
    assert (BUILT_IN / f"{name}.jsonl").read_text() == write.text_of(name)
    task = load(name, None)
    assert task.left_out == 0
    assert task.card.about


def test_every_built_in_task_is_listed() -> None:
    assert built_in() == sorted(write.TASKS)


async def test_the_pivot_problems_are_graded_as_everywhere_else() -> None:
    from sglang_power.evaluation.grading import Grader

    grader = Grader()
    for family, name in (("Q", "pivot_q"), ("R", "pivot_r")):
        drawn = problems(family, write.COUNT, write.SEED)  # type: ignore[arg-type]
        for problem, item in list(zip(drawn, load(name, None).items, strict=True))[:20]:
            assert item.question == problem.text
            assert (await grader.grade(item, worked_completion(problem))).correct is True
            assert (await grader.grade(item, f"A{(problem.answer + 1) % 10}.")).correct is False
    grader.close()


def test_a_port_that_forwards_can_end() -> None:
    """Control of this module's own double: nobody answers behind it any more."""
    with closing(socket.create_server(("127.0.0.1", 0))) as behind:
        port = behind.getsockname()[1]
        with forwarding(Server(f"http://127.0.0.1:{port}", 0, Path(), "x")) as (url, end):
            address = urlsplit(url)
            with socket.create_connection((address.hostname, address.port)) as client:
                served, _ = behind.accept()
                served.sendall(b"hello")
                assert client.recv(5) == b"hello"
                end()
                assert client.recv(5) == b""
            served.close()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address.hostname, address.port))


@pytest.mark.parametrize("path", sorted(publish.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_the_guide_shows_what_was_published(path: Path) -> None:
    report = publish.read(path)
    shown = publish.GUIDE.read_text().split(f"<!-- eval {path.stem} -->\n")[1]
    assert shown.split(f"\n<!-- /eval {path.stem} -->")[0] == "\n".join(publish.section(report))
    assert path.stat().st_size < 50_000
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert report.hardware


def test_a_report_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = publish.RESULTS / "pivot_r.json"
    guide = tmp_path / "guide.md"
    guide.write_text("before\n<!-- eval pivot_r -->\nold\n<!-- /eval pivot_r -->\nafter\n")
    publish.renew("pivot_r", publish.read(source), guide)
    told = guide.read_text()
    assert told.startswith("before\n<!-- eval pivot_r -->\nCorrelation of mean log p with being right: ")
    assert told.endswith("`.\n<!-- /eval pivot_r -->\nafter\n")
    assert "old" not in told
    folder = tmp_path / "pivot_r"
    folder.mkdir()
    (folder / "report.json").write_bytes(source.read_bytes())
    (folder / "report.png").write_bytes(source.with_suffix(".png").read_bytes())
    monkeypatch.setattr(publish, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(publish.renew, "__defaults__", (guide,))
    publish.main([str(folder)])
    assert (tmp_path / "results" / "pivot_r.json").read_bytes() == source.read_bytes()
