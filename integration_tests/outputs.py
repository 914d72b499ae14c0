"""Where measurements are written: outside the checkout, unless its committed figures are to be renewed."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the user's folder for files that can be made again ($XDG_CACHE_HOME, else ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sglang-power"


def add_outputs(parser: argparse.ArgumentParser, name: str, committed: Path) -> None:
    """Add the options `--results` and `--write`; `results_of` reads them.

    Args:
        parser: of a command that measures.
        name: of its folder outside the checkout.
        committed: the folder of the figures that the documents show.
    """
    parser.add_argument(
        "--results",
        type=Path,
        default=cache_folder() / name,
        metavar="DIR",
        help="folder for the results (default: %(default)s)",
    )
    parser.add_argument(
        "--write",
        dest="results",
        action="store_const",
        const=committed,
        help="renew the results that are committed, and what documents show of them",
    )


def results_of(options: argparse.Namespace) -> Path:
    """Return the folder that a command was told to write into; it exists from now on."""
    folder: Path = options.results
    folder.mkdir(parents=True, exist_ok=True)
    return folder
