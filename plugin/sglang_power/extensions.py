"""What other distributions add: by entry points, which the registry of each kind checks, and by extras."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

from sglang_power.errors import ConfigError


def install_extra(extra: str) -> str:
    """Return how an extra of this package is installed; no index has the package, so a clone is named.

    >>> install_extra("math")
    "pip install '.[math]' in a clone of sglang-power"
    """
    return f"pip install '.[{extra}]' in a clone of sglang-power"


def extensions(group: str) -> Iterator[tuple[str, str, Any]]:
    """Of every entry point of a group: its name, how errors call it, and what it loads.

    Raises:
        ConfigError: one that cannot be loaded.
    """
    for point in entry_points(group=group):
        named = f"entry point {point.name} = {point.value} of {group}"
        try:
            loaded = point.load()
        except Exception as error:
            raise ConfigError(f"{named}: {error}") from error
        yield point.name, named, loaded
