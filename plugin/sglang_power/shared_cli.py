"""What commands that ask a server have in common: options, and how they end. Knows no command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import httpx

from sglang_power.errors import PowerError
from sglang_power.extensions import install_extra
from sglang_power.gateways import server_of

INTERRUPTED = 130


def add_server(parser: argparse.ArgumentParser, timeout_s: float) -> None:
    """Add the options that say which server is asked, and how long one answer may take by default."""
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:30000", help="base URL of the server (default: %(default)s)")
    add("--api-key", default=os.environ.get("SGLANG_API_KEY"), help="the server's key (SGLANG_API_KEY)")
    add("--timeout", type=float, default=timeout_s, help="seconds for one answer (default: %(default)s)")


def add_prompts(parser: argparse.ArgumentParser) -> None:
    """Add the options of a file of typical prompts."""
    add = parser.add_argument
    add(
        "--prompts",
        type=Path,
        required=True,
        metavar="FILE",
        help="typical prompts: one a line, or (.jsonl) an object a line with text, prompt or messages",
    )
    add("--chat", action="store_true", help="texts are messages of a user, not beginnings that go on")


def failed(message: str, status: int = 2) -> int:
    """Print what went wrong, and return the exit status."""
    print(message, file=sys.stderr)
    return status


def ended(work: Callable[[], int], url: str, packages: Collection[str], interrupted: str) -> int:
    """Do the work of a command of the extra `[eval]`, and return its exit status; 2 where it ended early.

    Args:
        work: returns the exit status.
        url: of the server, as the user named it.
        packages: of the extra, that the work imports.
        interrupted: what to say after Ctrl-C.

    Raises:
        ModuleNotFoundError: a module is missing that is none of the packages.
    """
    try:
        return work()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in packages:
            raise
        return failed(f"{error.name} is missing: {install_extra('eval')}")
    except (PowerError, OSError) as error:
        return failed(str(error) or repr(error))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return failed(f"{server_of(url)} does not answer: {error!r}")
    except KeyboardInterrupt:
        return failed(interrupted, INTERRUPTED)


def wrong_number(options: argparse.Namespace, counts: Iterable[str]) -> str | None:
    """Return what is wrong with the options that are counts, or with the seed; None where nothing is."""
    for name in counts:
        if (told := getattr(options, name)) is not None and told < 1:
            return f"argument --{name.replace('_', '-')}: at least 1"
    return "argument --seed: not below 0" if options.seed < 0 else None
