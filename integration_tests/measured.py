"""Where figures come from: what every record of a measurement begins or ends with."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from integration_tests.demo import hardware

PACKAGES = ("sglang", "sglang-power", "torch")


def origin(command: str, packages: tuple[str, ...] = PACKAGES) -> dict[str, Any]:
    """Return the machine, the versions and the command of a measurement.

    Args:
        command: that makes it again.
        packages: whose versions matter to it.
    """
    versions = {name: version(name) for name in packages}
    return {"hardware": hardware(), "versions": versions, "command": command}
