"""The command `sglang-power tune thresholds`: measure a served model, write its `parameters`.

Every prompt is answered twice through the server, greedily and drawn at temperature 1, by a `branch` whose
trigger never fires and which returns its rows. Knows routes and reports, not SGLang.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import httpx

import sglang_power
from sglang_power import tuning
from sglang_power.algorithms.triggers import Signals, signals_along
from sglang_power.check_cli import status_of
from sglang_power.errors import ConfigError
from sglang_power.gateways import server_of
from sglang_power.types import ROW_FIELDS

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Json: TypeAlias = dict[str, Any]

NEVER: Final = 1e9
"""Nats that no row has."""

GREEDY: Final[Json] = {
    "sampler": "branch",
    "trigger": "entropy",
    "threshold": NEVER,
    "policy": "tree",
    "answer": "text",
    "return_rows": True,
}
DRAWN: Final[Json] = {**GREEDY, "continuation_policy": {"sampler": "temperature", "value": 1.0}}

ROWS_PER_FIRING: Final = 20
"""Firings that a measurement should rest on."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One line of the prompts' file: a text, or the messages of a chat."""

    text: str | None = None
    messages: list[Json] | None = None


def add_tune(commands: Commands) -> None:
    """The options of `tune thresholds`."""
    tune = commands.add_parser("tune", help="measure the served model")
    thresholds = tune.add_subparsers(dest="tuned", required=True).add_parser(
        "thresholds",
        help="thresholds of branch triggers and of entropix, at which they fire at a share of the rows",
    )
    add = thresholds.add_argument
    add("--url", default="http://127.0.0.1:30000", help="base URL of the server (default: %(default)s)")
    add("--api-key", default=os.environ.get("SGLANG_API_KEY"), help="the server's key (SGLANG_API_KEY)")
    add(
        "--prompts",
        type=Path,
        required=True,
        metavar="FILE",
        help="typical prompts: one a line, or (.jsonl) an object a line with text, prompt or messages",
    )
    add("--chat", action="store_true", help="texts are messages of a user, not beginnings that go on")
    add("--rate", type=float, default=0.05, help="share of the rows at which to fire (default: %(default)s)")
    add("--limit", type=int, default=64, help="prompts to use, from the top (default: %(default)s)")
    add("--max-tokens", type=int, default=256, help="of an answer (default: %(default)s)")
    add("--concurrency", type=int, default=8, help="requests at once (default: %(default)s)")
    add("--timeout", type=float, default=600.0, help="seconds for one answer (default: %(default)s)")
    add("-o", "--output", type=Path, metavar="FILE", help="where to write; by default to the terminal")
    thresholds.set_defaults(parser=thresholds)


def run_tune(options: argparse.Namespace) -> int:
    """Measure, and write the section; 0 when it is written."""
    if problem := _wrong_option(options):
        options.parser.error(problem)
    server = server_of(options.url)
    headers = {} if options.api_key is None else {"Authorization": f"Bearer {options.api_key}"}
    try:
        prompts = read_prompts(options.prompts, chat=options.chat)[: options.limit]
        with httpx.Client(base_url=server, headers=headers, timeout=options.timeout) as client:
            code, status = status_of(client, server, key_given=options.api_key is not None)
            if not isinstance(status, dict):
                print("\n".join(status), file=sys.stderr)
                return code
            measured = measure(client, status["served_model"], prompts, options)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        print(f"{server} does not answer: {error!r}", file=sys.stderr)
        return 2
    _write(_section(status["served_model"], measured, options), options.output)
    return 0


def _wrong_option(options: argparse.Namespace) -> str | None:
    if not 0.0 < options.rate < 1.0:
        return "argument --rate: a share above 0 and below 1"
    for name, least in (("limit", 2), ("max_tokens", 2), ("concurrency", 1)):
        if getattr(options, name) < least:
            return f"argument --{name.replace('_', '-')}: at least {least}"
    return None


def read_prompts(path: Path, *, chat: bool) -> list[Prompt]:
    """Return the prompts of a file, in order.

    Raises:
        ConfigError: unreadable, fewer than two prompts, or a line that is none; with its number.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    as_json = path.suffix == ".jsonl"
    prompts = [
        _json_prompt(path, number, line, chat=chat) if as_json else _text_prompt(line, chat=chat)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if len(prompts) < 2:
        raise ConfigError(
            f"{path}: {len(prompts)} prompts; give at least two, better 50, of the kind you serve"
        )
    return prompts


def _text_prompt(text: str, *, chat: bool) -> Prompt:
    return Prompt(messages=[{"role": "user", "content": text}]) if chat else Prompt(text=text)


def _json_prompt(path: Path, number: int, line: str, *, chat: bool) -> Prompt:
    where = f"{path}, line {number}"
    try:
        told = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON: {error}") from error
    if isinstance(told, dict) and isinstance(told.get("messages"), list):
        return Prompt(messages=told["messages"])
    text = (told.get("text") or told.get("prompt")) if isinstance(told, dict) else None
    if not isinstance(text, str):
        raise ConfigError(f"{where}: an object with text, prompt or messages is needed")
    return _text_prompt(text, chat=chat)


@dataclass(frozen=True, slots=True)
class Measured:
    """Rows of every answer: of greedy ones, and of drawn ones."""

    greedy: list[list[Signals]]
    drawn: list[list[Signals]]


def measure(
    client: httpx.Client, served_model: str, prompts: Sequence[Prompt], options: argparse.Namespace
) -> Measured:
    """Return the rows of both answers to every prompt.

    Raises:
        ConfigError: the server refused a request, or answered by another sampler.
        httpx.HTTPError: it does not answer.
    """
    from tqdm import tqdm  # comes with SGLang

    asked = [(kind, number) for number in range(len(prompts)) for kind in (GREEDY, DRAWN)]

    def one(job: tuple[Json, int]) -> list[Signals]:
        kind, number = job
        values = {**kind, "seed": number}
        return answered(client, served_model, prompts[number], values, options.max_tokens)

    with ThreadPoolExecutor(options.concurrency) as pool:
        results: Iterator[list[Signals]] = tqdm(
            pool.map(one, asked), total=len(asked), desc="answers", unit="answer", file=sys.stderr
        )
        rows = list(results)
    return Measured(greedy=rows[::2], drawn=rows[1::2])


def answered(
    client: httpx.Client, served_model: str, prompt: Prompt, values: Json, max_tokens: int
) -> list[Signals]:
    """Return what triggers see along one answer.

    Raises:
        ConfigError: refused, or answered by another sampler.
    """
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0}
    if prompt.messages is not None:
        body = {"model": served_model, "messages": prompt.messages, "max_tokens": max_tokens}
        response = client.post("/v1/chat/completions", json={**body, **neutral, "custom_params": values})
    else:
        sampling = {**neutral, "max_new_tokens": max_tokens, "custom_params": values}
        response = client.post("/generate", json={"text": prompt.text, "sampling_params": sampling})
    if response.is_error:
        raise ConfigError(f"the server answered {response.status_code}: {response.text}")
    report = _report(response.json())
    if report.get("sampler") != values["sampler"]:
        raise ConfigError(f"the server ran {report.get('sampler')!r} instead of {values['sampler']!r}")
    columns = report["paths"][0]["rows"]
    records = zip(*(columns[field] for field in ROW_FIELDS), strict=True)
    return signals_along([[float("nan") if x is None else x for x in record] for record in records])


def _report(answer: Json) -> Json:
    if "choices" in answer:
        reports = (answer.get("metadata") or {}).get("power") or [{}]
        found: Json = reports[0]
        return found
    told: Json = answer["meta_info"].get("power") or {}
    return told


def _section(served_model: str, measured: Measured, options: argparse.Namespace) -> str:
    rows = sum(map(len, measured.greedy))
    if rows * options.rate < ROWS_PER_FIRING:
        few = f"only {rows} rows: the thresholds rest on few of them; use more prompts or longer answers"
        print(few, file=sys.stderr)
    remarks = [
        f"sglang-power tune thresholds {sglang_power.__version__}, {time.strftime('%Y-%m-%d')}: "
        f"{len(measured.greedy)} prompts of {options.prompts.name}, target {options.rate:.1%} of the rows.",
        f"branch: {rows} rows of greedy answers; entropix: {sum(map(len, measured.drawn))} rows drawn at "
        "temperature 1.",
    ]
    branch = tuning.tuned(measured.greedy, options.rate)
    return tuning.section(served_model, branch, tuning.tuned(measured.drawn, options.rate), remarks)


def _write(text: str, output: Path | None) -> None:
    if output is None:
        print(text, end="")
        return
    output.write_text(text, encoding="utf-8")
    print(f"wrote {output}")
