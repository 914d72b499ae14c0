"""The command `sglang-power hooks`: has SGLang changed what the plugin stands on? Needs no server."""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import TypeAlias

from sglang_power.errors import ConfigError

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_hooks(commands: Commands) -> None:
    """Add the options of `hooks`."""
    hooks = commands.add_parser(
        "hooks", help="compare what the plugin hooks in SGLang with the sources that it was written against"
    )
    hooks.add_argument(
        "--sglang",
        type=Path,
        metavar="DIR",
        help="folder that holds the package (default: the installed one)",
    )
    hooks.add_argument("--version", metavar="X.Y.Z", help="its version (default: that of the installed one)")
    hooks.add_argument(
        "--write", action="store_true", help="record this version: its changes have been reviewed"
    )


def run_hooks(options: argparse.Namespace) -> int:
    """Print what has changed; 1 where something has, 2 where there is nothing to compare."""
    from sglang_power.sglang_host import sources
    from sglang_power.sglang_host.hooks import HOOKS

    if options.sglang is not None and options.version is None:
        print("--sglang needs --version: which version lies there?", file=sys.stderr)
        return 2
    installed = distribution("sglang")
    root = options.sglang or Path(str(installed.locate_file("")))
    version = options.version or installed.version
    try:
        found = sources.digests([hook.target for hook in HOOKS], root)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if options.write:
        sources.record(found, version)
    review = sources.reviewed(found, version, sources.recorded())
    print("\n".join(review.lines()))
    return 0 if review.clean else 1
