"""What one process can say of its hooks, for `sglang-power check`. Any server process."""

from __future__ import annotations

import os
from typing import Any

from sglang_power_kernels import counters

import sglang_power
from sglang_power.sglang_host.hooks import HOOKS


def report(role: str) -> dict[str, Any]:
    """Plugin version, process, the hooks that are live in it, kernel calls by backend."""
    return {
        "role": role,
        "pid": os.getpid(),
        "version": sglang_power.__version__,
        "hooks": {hook.target: hook.state() for hook in HOOKS if role in hook.roles},
        "kernels": counters(),
    }


def scheduler_report() -> dict[str, Any]:
    """The report of a scheduler process, sent back by a probe child."""
    return report("scheduler")
