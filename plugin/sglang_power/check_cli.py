"""The command `sglang-power check`: what a running server says of the plugin. Knows routes, not SGLang."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, TypeAlias

import httpx

from sglang_power.routes import STATUS_ROUTE

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_check(commands: Commands) -> None:
    """The options of `check`."""
    check = commands.add_parser("check", help="ask a running server whether power sampling is live in it")
    check.add_argument("--url", default="http://127.0.0.1:30000", help="base URL of the server")
    check.add_argument(
        "--api-key", default=os.environ.get("SGLANG_API_KEY"), help="the server's key (SGLANG_API_KEY)"
    )
    check.add_argument("--timeout", type=float, default=30.0, help="seconds")


def run_check(options: argparse.Namespace) -> int:
    """Print what a server reports; 0 when every hook is live in every process and nothing is refused."""
    url, api_key, timeout = options.url, options.api_key, options.timeout
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    try:
        response = httpx.get(url.rstrip("/") + STATUS_ROUTE, headers=headers, timeout=timeout)
    except httpx.HTTPError as error:
        print(f"{url} does not answer: {error}", file=sys.stderr)
        return 2
    if response.status_code == httpx.codes.NOT_FOUND:
        print(f"{url} runs without the plugin: it has no {STATUS_ROUTE}", file=sys.stderr)
        return 1
    if response.is_error:
        print(f"{url} answered {response.status_code}: {response.text}", file=sys.stderr)
        return 2
    status: dict[str, Any] = response.json()
    print("\n".join(describe(status)))
    return 0 if is_healthy(status) else 1


def is_healthy(status: dict[str, Any]) -> bool:
    """True when power requests would be served."""
    hooks = [state for process in status["processes"] for state in process["hooks"].values()]
    return not status["refused"] and "missing" not in hooks


def describe(status: dict[str, Any]) -> list[str]:
    """The report, line by line."""
    lines = [f"SGLang {status['sglang']}, model {status['served_model']}"]
    for process in status["processes"]:
        where = f"rank {process['dp_rank']}, " if "dp_rank" in process else ""
        lines.append(
            f"{process['role']} ({where}pid {process.get('pid')}): sglang-power {process['version']}"
        )
        lines += [f"  {state:8} {target}" for target, state in process["hooks"].items()]
        lines += [f"  {count:8} kernel calls {name}" for name, count in process.get("kernels", {}).items()]
    lines += [f"refused: {refusal}" for refusal in status["refused"]] or [
        "refused by this configuration: nothing"
    ]
    lines.append(f"limits: {status['limits']}")
    lines.append(f"presets: {', '.join(status['presets']) or 'none'}; default: {status['default'] or 'none'}")
    for name, enrolling in status["experiments"].items():
        lines.append(f"experiment {name}: {'enrolling' if enrolling else 'not enrolling'}")
    lines.append("power sampling is live" if is_healthy(status) else "power sampling is NOT live")
    return lines
