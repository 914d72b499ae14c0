"""Hot reload: watches a directory of experiments and has the catalogue read it again.

A change takes effect within two seconds: the operating system tells of it at once, and changes that come
together are collected for DEBOUNCE_MS. Edits, atomic replacements, new and deleted files, states, and
directories behind a symbolic link that is swapped (Kubernetes does so) are all seen. A file system that tells
nothing of edits made elsewhere (NFS) needs WATCHFILES_FORCE_POLLING=true.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias

from watchfiles import awatch

from sglang_power.experiments.catalogue import Catalogue

DEBOUNCE_MS: Final = 200
TICK_MS: Final = 500
"""How often it is checked that the directory under watch is still the one of its path."""

OnReload: TypeAlias = Callable[[list[str]], None]


async def watch(catalogue: Catalogue, on_reload: OnReload, stop: asyncio.Event) -> None:
    """Reload at every change until told to stop.

    Args:
        catalogue: reads its directory again.
        on_reload: gets what is wrong, whenever that or `catalogue.experiments` has changed, before anything
            else runs on this event loop: load the new snapshot's flags here (`Assigner.load`), so that no
            request sees one without the other.
        stop: ends the watch.
    """
    reloads = _Reloads(catalogue, on_reload)
    while not stop.is_set():
        try:
            await _watch_one(catalogue.directory, reloads, stop)
        except OSError as error:  # gone for a moment, or no watch to be had: then every tick reads it
            reloads.run(f"{catalogue.directory} cannot be watched: {error}")
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), TICK_MS / 1000)


class _Reloads:
    """Reloads a catalogue, and tells of it where there is something to tell."""

    def __init__(self, catalogue: Catalogue, on_reload: OnReload) -> None:
        self._catalogue, self._on_reload = catalogue, on_reload
        self._told: list[str] = []

    def run(self, *also: str) -> None:
        problems = [*self._catalogue.reload(), *also]
        if self._catalogue.changes or problems != self._told:
            self._told = problems
            self._on_reload(problems)


async def _watch_one(directory: Path, reloads: _Reloads, stop: asyncio.Event) -> None:
    """Until the path leads to another directory: the watch stays with the old one.

    Raises:
        OSError: it cannot be watched.
    """
    watched = _identity(directory)
    unseen = True
    async for changes in awatch(
        directory,
        watch_filter=None,
        debounce=DEBOUNCE_MS,
        rust_timeout=TICK_MS,
        yield_on_timeout=True,
        recursive=False,
        stop_event=stop,
    ):
        if changes or unseen:  # what happened before the watch was in place is in no event
            reloads.run()
            unseen = False
        if _identity(directory) != watched:
            return


def _identity(directory: Path) -> tuple[int, int]:
    status = directory.stat()
    return status.st_dev, status.st_ino
