"""Hot reload with the real file system. Nothing here is timed: each step waits for what it expects.

A watch that never tells fails by the deadline of `until`, which is far above the two seconds of a kill.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import Mock

import pytest
from ab_experiments import write
from sglang_power.experiments import watching
from sglang_power.experiments.catalogue import Catalogue, unchecked
from sglang_power.experiments.state import State, state_path, write_state
from sglang_power.experiments.watching import watch


class Told:
    """What the watch told of."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.times = 0

    def __call__(self, problems: list[str]) -> None:
        self.problems, self.times = problems, self.times + 1


@asynccontextmanager
async def watched(directory: Path) -> AsyncIterator[tuple[Catalogue, Told]]:
    """A catalogue under watch; the watch must end by itself when it is told to stop."""
    catalogue, told, stop = Catalogue(directory, unchecked), Told(), asyncio.Event()
    task = asyncio.create_task(watch(catalogue, told, stop))
    try:
        yield catalogue, told
    finally:
        stop.set()
        await asyncio.wait_for(task, 10)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def names(catalogue: Catalogue) -> list[str]:
    return [each.experiment.name for each in catalogue.experiments]


def enrolling(catalogue: Catalogue) -> list[bool]:
    return [each.enrolling for each in catalogue.experiments]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    directory = tmp_path / "experiments"
    directory.mkdir()
    return directory


async def test_every_kind_of_edit_is_seen(folder: Path) -> None:
    path = write(folder)
    async with watched(folder) as (catalogue, _told):
        write(folder, kill=True)
        await until(lambda: enrolling(catalogue) == [False])
        write(folder.parent).replace(path)
        await until(lambda: enrolling(catalogue) == [True])
        write(folder, name="new")
        await until(lambda: names(catalogue) == ["exp", "new"])
        write_state(state_path(path), State(killed=True))
        await until(lambda: enrolling(catalogue) == [False, True])
        path.unlink()
        await until(lambda: names(catalogue) == ["new"])


async def test_a_change_before_the_watch_is_in_place_is_seen(folder: Path) -> None:
    path = write(folder)
    catalogue, stop = Catalogue(folder, unchecked), asyncio.Event()
    path.unlink()
    task = asyncio.create_task(watch(catalogue, lambda _problems: None, stop))
    await until(lambda: not catalogue.experiments)
    stop.set()
    await asyncio.wait_for(task, 10)


async def test_problems_are_told_until_they_are_mended(folder: Path) -> None:
    path = write(folder)
    async with watched(folder) as (catalogue, told):
        path.write_text("name: [")
        await until(lambda: bool(told.problems))
        assert str(path) in told.problems[0]
        assert enrolling(catalogue) == [True]
        write(folder)
        await until(lambda: not told.problems)


async def test_a_directory_that_vanishes_and_comes_back(folder: Path) -> None:
    write(folder)
    async with watched(folder) as (catalogue, told):
        shutil.rmtree(folder)
        await until(lambda: bool(told.problems))
        assert names(catalogue) == ["exp"]
        folder.mkdir()
        write(folder, kill=True)
        await until(lambda: enrolling(catalogue) == [False])
        write(folder)
        await until(lambda: enrolling(catalogue) == [True])
        assert told.problems == []


async def test_a_directory_behind_a_link_that_is_swapped(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, name=name)
    link, other = tmp_path / "link", tmp_path / "other"
    link.symlink_to("one")
    async with watched(link) as (catalogue, _told):
        write(tmp_path / "one", name="one", kill=True)
        await until(lambda: enrolling(catalogue) == [False])  # the watch is in place
        other.symlink_to("two")
        other.replace(link)
        await until(lambda: names(catalogue) == ["two"])
        write(tmp_path / "two", name="two", kill=True)
        await until(lambda: enrolling(catalogue) == [False])


async def test_files_behind_a_link_inside_that_is_swapped(folder: Path) -> None:
    """Kubernetes: x.yaml -> ..data/x.yaml, ..data -> a directory; an update swaps ..data."""
    for version, kill in (("..1", False), ("..2", True)):
        (folder / version).mkdir()
        write(folder / version, kill=kill)
    (folder / "..data").symlink_to("..1")
    (folder / "exp.yaml").symlink_to("..data/exp.yaml")
    async with watched(folder) as (catalogue, _told):
        assert enrolling(catalogue) == [True]
        (folder / "..half").symlink_to("..2")
        (folder / "..half").replace(folder / "..data")
        await until(lambda: enrolling(catalogue) == [False])


async def test_without_notifications_every_tick_reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the system has no inotify watches left."""

    async def none_left(*_paths: Path, **_options: object) -> AsyncIterator[set[tuple[int, str]]]:
        raise OSError("no space left on device")
        yield set()

    monkeypatch.setattr(watching, "awatch", none_left)
    write(folder)
    async with watched(folder) as (catalogue, told):
        await until(lambda: bool(told.problems))
        assert "no space left" in told.problems[0]
        write(folder, kill=True)
        await until(lambda: enrolling(catalogue) == [False])


async def test_it_reads_after_changes_and_tells_of_what_they_changed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scripted watch: ticks without a change, a change of nothing, an edit."""
    write(folder)
    catalogue, told, stop = Catalogue(folder, unchecked), Told(), asyncio.Event()
    read = Mock(side_effect=catalogue.reload)
    monkeypatch.setattr(catalogue, "reload", read)

    async def scripted(*_paths: Path, **_options: object) -> AsyncIterator[set[str]]:
        for changes in (set(), set(), {"notes.txt"}, set()):
            yield changes
        write(folder, kill=True)
        yield {"exp.yaml"}
        stop.set()

    monkeypatch.setattr(watching, "awatch", scripted)
    await asyncio.wait_for(watch(catalogue, told, stop), 10)
    assert read.call_count == 3
    assert told.times == 1
