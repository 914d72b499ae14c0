"""What every sampler of whole answers keeps to, whoever brings it: a row per sampler, a check per promise.

`test_contract.py` runs the checks through /generate and chat, `integration_tests/contract_tests` through all
routes. A sampler that is registered and has no row fails the suite.
"""

from __future__ import annotations

import functools
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from integration_tests.helpers.clients import (
    HTTP,
    LONG,
    MESSAGES,
    PROMPT,
    QUICK,
    abort,
    active,
    events,
    eventually,
    leave,
    post,
    quiet,
    running,
    scheduled,
    standstill,
)
from integration_tests.server import Server
from integration_tests.tests.test_entropix_branch import PIVOTS
from integration_tests.tests.test_kl_guided_server import GUIDED
from integration_tests.tests.test_policies_interrupted import overtaken

Json = dict[str, Any]

TOKENS = 32
ENDLESS_TOKENS = 96
SEED = 11


@dataclass(frozen=True)
class Row:
    """One sampler.

    Args:
        quick: parameters of an answer that takes a moment.
        lasting: parameters with which it runs as long as it can.
        answers: sequences that one quick choice generates at least.
        budgets: it takes `max_total_tokens` and `deadline_ms`; policies do not, and have to say so.
        brief: its lasting answer ends by itself within a second, for the context is short; so it gets as many
            tokens as there is room for, and is asked again until it was interrupted in time.
        children: what a lasting answer asks of the scheduler before anything runs.
    """

    quick: Json
    lasting: Json
    answers: int = 1
    budgets: bool = True
    brief: bool = False
    children: int = 2

    @property
    def name(self) -> str:
        """What its reports call it."""
        return str(self.quick["sampler"])


def _drawing(name: str, answers: int = 2, **more: Any) -> Row:
    """A sampler that draws answers and chooses among them."""
    quick = {"sampler": name, "samples": answers, **more}
    return Row(quick, {**quick, "base": LONG}, answers)


PAIRED = frozenset({"kl_guided"})
"""Those whose answer is decoded behind two prompts at once."""

CONTRACT: dict[str, Row] = {
    "power": Row(QUICK, LONG),
    "smc": Row(
        {"sampler": "smc", "particles": 3, "block_size": 8},
        {"sampler": "smc", "particles": 16, "runs": 8, "block_size": 4},
        answers=3,
        brief=True,
    ),
    "perfect": Row(
        {"sampler": "perfect", "alpha": 1.1},
        {"sampler": "perfect", "alpha": 1000.0, "width": 2, "max_trials": 2**31 - 1},
    ),
    "lookahead": Row(
        {"sampler": "lookahead", "candidates": 2, "rollouts": 2, "block_size": 8, "rollout_tokens": 8},
        {"sampler": "lookahead", "block_size": 1},
    ),
    "cot": Row({"sampler": "cot", "k": 3}, {"sampler": "cot", "k": 8}, answers=3, brief=True),
    "vote": _drawing("vote"),
    "best_of": _drawing("best_of"),
    "branch": Row(
        {"sampler": "branch", "branch_k": 2, "max_depth": 1},
        {"sampler": "branch", "refine": LONG},
    ),
    "shortlist": _drawing("shortlist", keep=1, reward="worked_steps"),
    "kl_guided": Row(GUIDED, GUIDED, budgets=False, brief=True),
    "entropix": Row(
        {"sampler": "entropix", "explore": "branch", **PIVOTS},
        {"sampler": "entropix", "explore": "branch", **PIVOTS},
        budgets=False,
        brief=True,
    ),
}


# --- doors ---


@dataclass(frozen=True)
class Answers:
    """What a door gave: one entry per choice, and the tokens of all of them as the client is told."""

    texts: list[str]
    reports: list[Json]
    finishes: list[str]
    tokens: int


@dataclass(frozen=True)
class Door:
    """One way to a server.

    Args:
        path: of the route.
        stream: whether answers are streamed.
    """

    path: str
    stream: bool

    def __str__(self) -> str:
        return self.path.removeprefix("/v1").strip("/") + (" stream" if self.stream else "")

    def body(self, custom: Json, tokens: int = TOKENS, n: int = 1, **more: Any) -> Json:
        """A request; `more` stands at the top of its body but for `ignore_eos`."""
        if self.path == "/generate":
            params = {"max_new_tokens": tokens, "n": n, "custom_params": custom}
            if "ignore_eos" in more:
                params["ignore_eos"] = more.pop("ignore_eos")
            return {"text": PROMPT, "stream": self.stream, "sampling_params": params, **more}
        asked: Json = {"messages": MESSAGES} if "chat" in self.path else {"prompt": PROMPT}
        streamed = {"stream_options": {"include_usage": True}} if self.stream else {}
        common = {"model": "pivot", "max_tokens": tokens, "n": n, "stream": self.stream, **streamed}
        return {**common, "custom_params": custom, **asked, **more}

    def ask(self, server: Server, custom: Json, tokens: int = TOKENS, n: int = 1, **more: Any) -> Answers:
        """The answers to a request."""
        body = self.body(custom, tokens, n, **more)
        if self.stream:
            chunks = events(server, self.path, body)
            return _of_events(chunks, n) if self.path == "/generate" else _of_chunks(chunks, n)
        response = post(server, self.path, body)
        assert response.status_code == httpx.codes.OK, response.text
        return _of_generate(response.json()) if self.path == "/generate" else _of_openai(response.json())


GENERATE, GENERATE_STREAM = Door("/generate", stream=False), Door("/generate", stream=True)
CHAT, CHAT_STREAM = (Door("/v1/chat/completions", stream) for stream in (False, True))
COMPLETIONS, COMPLETIONS_STREAM = (Door("/v1/completions", stream) for stream in (False, True))
DOORS = [GENERATE, GENERATE_STREAM, COMPLETIONS, COMPLETIONS_STREAM, CHAT, CHAT_STREAM]


def _of_generate(told: Any) -> Answers:
    answers = told if isinstance(told, list) else [told]
    metas = [answer["meta_info"] for answer in answers]
    for answer, meta in zip(answers, metas, strict=True):
        assert meta["completion_tokens"] == len(answer["output_ids"])
        assert meta["prompt_tokens"] == len(PROMPT)
    return Answers(
        [answer["text"] for answer in answers],
        [meta["power"] for meta in metas],
        [meta["finish_reason"]["type"] for meta in metas],
        sum(meta["completion_tokens"] for meta in metas),
    )


def _of_events(told: list[Json], n: int) -> Answers:
    """Every event holds all of the text so far: nothing of it is taken back."""
    last: list[Json] = [{"text": ""}] * n
    for event in told:
        index = event.get("index", 0)
        assert event["text"].startswith(last[index]["text"])
        last[index] = event
    return _of_generate(last)


def _of_openai(told: Json) -> Answers:
    choices = sorted(told["choices"], key=lambda choice: int(choice["index"]))
    assert told["usage"]["prompt_tokens"] == len(PROMPT)
    return Answers(
        [choice["message"]["content"] if "message" in choice else choice["text"] for choice in choices],
        told["metadata"]["power"],
        [choice["finish_reason"] for choice in choices],
        told["usage"]["completion_tokens"],
    )


def _of_chunks(told: list[Json], n: int) -> Answers:
    texts, finishes = [""] * n, [""] * n
    for chunk in told:
        for choice in chunk["choices"]:
            new = choice["delta"].get("content") if "delta" in choice else choice["text"]
            texts[choice["index"]] += new or ""
            finishes[choice["index"]] = choice["finish_reason"] or finishes[choice["index"]]
    (reports,) = [chunk["metadata"]["power"] for chunk in told if "power" in (chunk.get("metadata") or {})]
    (usage,) = [chunk["usage"] for chunk in told if chunk.get("usage")]
    assert usage["prompt_tokens"] == len(PROMPT)
    return Answers(texts, reports, finishes, usage["completion_tokens"])


# --- promises ---


def check_answer(server: Server, row: Row, door: Door) -> None:
    """One seed, one answer, through whichever door; usage counts it, the report names what ran."""
    custom = {**row.quick, "seed": SEED}
    (expected, told) = (each.ask(server, custom) for each in (GENERATE, door))
    assert told.texts == expected.texts
    assert told.tokens == expected.tokens
    assert told.finishes == expected.finishes
    (report,) = told.reports
    assert (report["sampler"], report["seed"]) == (row.name, SEED)
    assert report["fallback_reason"] is None
    assert report["decoded_tokens"] >= expected.tokens > 0
    assert report["children"] >= 1
    assert report["law"] in ("perfect", "power", "approximate", "selection", "policy")


def check_n(server: Server, row: Row, door: Door) -> None:
    """The first of two choices is the answer of a request for one; the second has a report of its own."""
    custom = {**row.quick, "seed": SEED}
    (alone, both) = (GENERATE.ask(server, custom), door.ask(server, custom, n=2))
    assert both.texts[0] == alone.texts[0]
    assert len(both.texts) == len(both.reports) == 2
    assert {report["sampler"] for report in both.reports} == {row.name}
    assert both.tokens >= alone.tokens + 1
    assert sum(report["decoded_tokens"] for report in both.reports) >= alone.reports[0]["decoded_tokens"]


def check_refusal(server: Server, row: Row, door: Door) -> None:
    """What cannot be served is a 400 that names the field, before any token, for streams too."""
    before = scheduled(server)
    for custom, named in (
        ({**row.quick, "unheard_of": 1}, "unheard_of"),
        ({**row.quick, "seed": -1}, "seed"),
    ):
        refused(server, door, door.body(custom), named)
    refused(server, door, door.body(row.quick, n=1000), "n=1000")
    assert scheduled(server) == before


def refused(server: Server, door: Door, body: Json, named: str) -> None:
    response = post(server, door.path, body)
    assert response.status_code == httpx.codes.BAD_REQUEST, (body, response.text)
    assert named in response.text


def check_max_total_tokens(server: Server, row: Row, door: Door) -> None:
    """A cap that holds the answers is kept; a smaller one is refused, before any token."""
    enough = row.answers * TOKENS
    small = door.body({**row.quick, "max_total_tokens": TOKENS - 1})
    refused(server, door, small, "max_total_tokens")
    if not row.budgets:
        return
    told = door.ask(server, {**row.quick, "seed": SEED, "max_total_tokens": enough})
    (report,) = told.reports
    asides = report.get("judge", {}).get("calls", 0) + 1  # the question for likely first tokens
    assert told.tokens <= report["decoded_tokens"] <= enough + asides
    assert report["stopped_by"] in ("completed", "max_total_tokens")


def check_deadline(server: Server, row: Row, door: Door) -> None:
    """A deadline ends a lasting request with an answer, which says so."""
    custom = {**row.lasting, "seed": SEED, "deadline_ms": 1}
    if not row.budgets:
        refused(server, door, door.body(custom), "deadline_ms")
        return
    told = door.ask(server, custom, ENDLESS_TOKENS, ignore_eos=True)
    (report,) = told.reports
    assert (report["sampler"], report["stopped_by"]) == (row.name, "deadline_ms")
    assert report["law"] not in ("perfect", "power")
    assert told.tokens >= 1
    assert told.finishes[0] != "abort"


def endings(server: Server, name: str) -> Counter[str]:
    """What ended the answers of a sampler so far, and how often."""
    text = HTTP.get(server.url + "/metrics").text
    found: Counter[str] = Counter()
    for labels, count in re.findall(r"^sglang_power_requests_total{(.*)} (\S+)$", text, re.MULTILINE):
        told = dict(re.findall(r'(\w+)="(.*?)"', labels))
        if told["sampler"] == name:
            found[told["stopped_by"]] += int(float(count))
    return found


def lasting(row: Row, door: Door, **more: Any) -> Json:
    """A request that runs until it is stopped, or as long as it can."""
    tokens = 200 if row.brief else ENDLESS_TOKENS
    return door.body(row.lasting, tokens, ignore_eos=True, **more)


def check_abort(server: Server, row: Row, door: Door) -> None:
    """An abort by the client's id gives what there was, and is counted once."""

    def attempt(number: int) -> tuple[Counter[str], str]:
        rid = f"contract-{row.name}-{door}-{number}".replace(" ", "-")
        before, asked = endings(server, row.name), scheduled(server)
        ask = functools.partial(_text_of, server, door, lasting(row, door, rid=rid))
        with running(ask) as call:
            eventually(lambda: call.done() or scheduled(server) >= asked + row.children, "it runs")
            abort(server, rid=rid)
            text = call.result()
        quiet(server)
        return endings(server, row.name) - before, text

    text = _text_of_aborted(attempt)
    assert re.search(r'"abort"', text)


def check_early_abort(server: Server, row: Row, door: Door) -> None:
    """An abort before the prompt is even read gives an empty answer that says so, and is counted once."""

    def attempt(number: int) -> tuple[Counter[str], str]:
        rid = f"contract-early-{row.name}-{door}-{number}".replace(" ", "-")
        before, at_work = endings(server, row.name), active(server, door.path)
        ask = functools.partial(_text_of, server, door, door.body(row.quick, rid=rid))
        with standstill(server) as resume, running(ask) as call:
            eventually(lambda: call.done() or active(server, door.path) > at_work, "it has arrived")
            abort(server, rid=rid)
            resume()
            text = call.result()
        quiet(server)
        return endings(server, row.name) - before, text

    _text_of_aborted(attempt)


def _text_of_aborted(attempt: Callable[[int], tuple[Counter[str], str]]) -> str:
    """The answer to a request that was aborted in time: it says so, and is counted once."""
    counted, text = overtaken(attempt, lambda outcome: "abort" in outcome[0])
    assert counted == {"abort": 1}
    assert re.search(r'"stopped_by":\s*"abort"', text)
    return text


def _text_of(server: Server, door: Door, body: Json) -> str:
    """All that the server sent; 200."""
    response = post(server, door.path, body)
    assert response.status_code == httpx.codes.OK, response.text
    if door.stream:
        assert response.text.rstrip().endswith("data: [DONE]")
    return response.text


def check_leaving(server: Server, row: Row, door: Door) -> None:
    """A client that leaves ends all of its children, and is counted once."""

    def attempt(_: int) -> Counter[str]:
        ready, before, asked = threading.Event(), endings(server, row.name), scheduled(server)
        with running(functools.partial(leave, server, door.path, lasting(row, door), ready)):
            eventually(lambda: scheduled(server) >= asked + row.children, "it runs")
            ready.set()
        eventually(lambda: endings(server, row.name) != before, "its end is counted")
        quiet(server)
        return endings(server, row.name) - before

    assert overtaken(attempt, lambda counted: "disconnect" in counted) == {"disconnect": 1}


Check = Callable[[Server, Row, Door], None]

CHECKS: dict[str, Check] = {
    "answer": check_answer,
    "n": check_n,
    "refusal": check_refusal,
    "max_total_tokens": check_max_total_tokens,
    "deadline": check_deadline,
    "abort": check_abort,
    "early abort": check_early_abort,
    "leaving": check_leaving,
}


@dataclass
class Table:
    """Results of checks: of how many doors each sampler keeps each promise."""

    cells: dict[tuple[str, str], list[bool]] = field(default_factory=dict)

    def add(self, sampler: str, promise: str, kept: bool) -> None:
        """Note one result."""
        self.cells.setdefault((sampler, promise), []).append(kept)

    def lines(self) -> list[str]:
        """The table as text: kept / tried."""
        promises = list(CHECKS)
        lines = ["".join([f"{'':12}", *(f"{name:>18}" for name in promises)])]
        for sampler in CONTRACT:
            shown = [self.cells.get((sampler, promise), []) for promise in promises]
            told = [f"{sum(cell)}/{len(cell)}" if cell else "-" for cell in shown]
            lines.append("".join([f"{sampler:12}", *(f"{text:>18}" for text in told)]))
        return lines
