"""The command `sglang-power check`: what a running server says of the plugin. Knows routes, not SGLang."""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, TypeAlias

import httpx

from sglang_power.gateway_check import REFUSED_KEY, wants_key, without_status
from sglang_power.gateways import ROUTED_DEFAULT, json_object, server_of
from sglang_power.routes import STATUS_ROUTE
from sglang_power.worker_check import tokenizers_of, with_every_worker

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_check(commands: Commands) -> None:
    """The options of `check`."""
    check = commands.add_parser("check", help="ask a running server whether power sampling is live in it")
    check.add_argument(
        "--url", default="http://127.0.0.1:30000", help="base URL of the server, with or without /v1"
    )
    check.add_argument(
        "--api-key", default=os.environ.get("SGLANG_API_KEY"), help="the server's key (SGLANG_API_KEY)"
    )
    check.add_argument(
        "--timeout", type=float, default=30.0, help="seconds, also until each worker has answered"
    )


def run_check(options: argparse.Namespace) -> int:
    """Print what a server reports; 0 when every hook is live in every process and nothing is refused."""
    server = server_of(options.url)
    headers = {} if options.api_key is None else {"Authorization": f"Bearer {options.api_key}"}
    try:
        with httpx.Client(headers=headers, timeout=options.timeout) as client:
            code, told = _checked(client, server, options)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        print(f"{server} does not answer: {error}", file=sys.stderr)
        return 2
    if isinstance(told, dict):
        print("\n".join(describe(told)))
    else:
        print("\n".join(told), file=sys.stderr)
    return code


def _checked(
    client: httpx.Client, server: str, options: argparse.Namespace
) -> tuple[int, dict[str, Any] | list[str]]:
    """Return the exit status with the report of every worker, or with what is wrong where there is none."""
    code, status = status_of(client, server, key_given=options.api_key is not None)
    if not isinstance(status, dict):
        return code, status
    status = with_every_worker(client, server, status, options.timeout)
    return (0 if is_healthy(status) else 1), status


def status_of(
    client: httpx.Client, server: str, *, key_given: bool
) -> tuple[int, dict[str, Any] | list[str]]:
    """Return 0 with a server's report, or an exit status with what is wrong where there is none."""
    response = client.get(server + STATUS_ROUTE)
    if response.status_code == httpx.codes.NOT_FOUND:
        return without_status(client, server)
    if response.status_code in REFUSED_KEY:
        return 2, [wants_key(server, key_given)]
    if response.is_error:
        return 2, [f"{server} answered {response.status_code}: {response.text}"]
    if not (status := json_object(response.text)):
        return 2, [f"{server} answers {STATUS_ROUTE} with something else: is it another service?"]
    return 0, status


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
    lines += [f"samplers: {', '.join(status['samplers'])}"] if "samplers" in status else []
    lines.append(f"presets: {', '.join(status['presets']) or 'none'}; default: {status['default'] or 'none'}")
    lines += [f"  {ROUTED_DEFAULT}"] if status["default"] else []
    lines += [*_experiments(status), *_rejected_edits(status)]
    lines.append("power sampling is live" if is_healthy(status) else "power sampling is NOT live")
    return lines


def _experiments(status: dict[str, Any]) -> Iterator[str]:
    """Yield a line per experiment; where the workers differ, how many of them enrol."""
    workers = [worker.get("experiments", status["experiments"]) for worker in tokenizers_of(status)]
    for name in sorted({name for worker in workers for name in worker}):
        enrolling = sum(worker.get(name, False) for worker in workers)
        state = "enrolling" if enrolling == len(workers) else "not enrolling"
        if 0 < enrolling < len(workers):
            state = f"enrolling in {enrolling} of {len(workers)} tokenizer workers"
        if any(name in worker.get("draining", ()) for worker in tokenizers_of(status)):
            state += ", draining"
        yield f"experiment {name}: {state}"


def _rejected_edits(status: dict[str, Any]) -> Iterator[str]:
    """Yield a line per problem of the last edit of experiments that a worker did not take."""
    told: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for worker in tokenizers_of(status):
        edit = worker.get("rejected_edit") or {}
        for problem in edit.get("problems", []):
            told[problem].append({"pid": worker["pid"], **edit})
    for problem, edits in told.items():
        when = datetime.fromtimestamp(min(edit["at"] for edit in edits), UTC)
        now = "corrected since" if all(edit["corrected"] for edit in edits) else "what was in force stays"
        pids = ", ".join(str(edit["pid"]) for edit in edits)
        yield f"rejected edit at {when:%Y-%m-%d %H:%M:%S} UTC (pid {pids}), {now}: {problem}"
