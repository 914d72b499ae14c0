"""`sp.branch`: one program becomes a group of branches, which share what it holds so far.

Branches by number or by name start empty. Those by first tokens or by a trigger start with tokens that the
model proposes, and the next generation of each begins with them (its `prefix`). Owns how prefixes are found.
"""

from __future__ import annotations

from typing import Any

from sglang_power.algorithms.triggers import DEFAULT_THRESHOLDS, THRESHOLDS
from sglang_power.engines.http.wire import NEUTRAL, ranking_body, read_ranking
from sglang_power.errors import HostError, RequestError, UnsupportedError
from sglang_power.frontend._lang import ProgramState, attach, is_tracer
from sglang_power.frontend.group import Group
from sglang_power.frontend.ledger import DrawnText, LedgerEntry
from sglang_power.frontend.rendering import Reason, Tail, shown
from sglang_power.frontend.session import Session, check_sampler
from sglang_power.frontend.settings import BranchSettings, TriggerSettings, parsed
from sglang_power.request import parse_request

FORCED = 1.0e6
"""A logit bias that leaves no other token a probability."""

SERVERS_OWN: dict[str, Any] = {
    name: [0.0] * count for name, count in THRESHOLDS.items() if name not in DEFAULT_THRESHOLDS
}
"""Stand-ins while a request is checked here: a server may have thresholds for triggers without a default."""

TRUNK: dict[str, Any] = {
    "sampler": "branch",
    "policy": "lookahead",
    "lookahead_tokens": 1,
    "max_depth": 1,
    "return_tree": True,
    "answer": "text",
}
"""The server's `branch` up to its first fork: one token per branch, and the best of them to its end."""


def branch(
    s: ProgramState,
    n: int | None = None,
    *,
    names: list[str] | None = None,
    first_tokens: int | None = None,
    trigger: str | list[str] | None = None,
    max_tokens: int | None = None,
    **parameters: Any,
) -> Group:
    """Branch a program: `group = sp.branch(s, 4)`.

    Args:
        s: the program, which has to wait until `select` merges a branch back.
        n, names, first_tokens, trigger: exactly one; see `BranchSettings`. A trigger that never fires gives
            one branch, which holds all that was generated.
        max_tokens, parameters: with a trigger; see `TriggerSettings`.

    Returns:
        The branches. The first generation of one with a prefix begins with its prefix: the variable holds it,
        max_tokens and stops count from its beginning, and settings that shape tokens are refused.

    Raises:
        RequestError: an argument is wrong. UnsupportedError: the vocabulary holds fewer first tokens.
        PowerError: the program has failed before.
    """
    asked = {"n": n, "names": names, "first_tokens": first_tokens, "trigger": trigger}
    settings = parsed(BranchSettings, asked)
    if trigger is None and (max_tokens is not None or parameters):
        given = parameters or {"max_tokens": max_tokens}
        raise RequestError(next(iter(given)), next(iter(given.values())), "needs a trigger", "Leave it out")
    search = parsed(TriggerSettings, {"max_tokens": max_tokens, **parameters})
    values = {**search.named, **TRUNK, "trigger": trigger}
    if trigger is not None:
        parse_request({**values, "thresholds": SERVERS_OWN})
    if is_tracer(s):
        s.fork(1)  # tells the tracer that the common prefix ends here
        raise UnsupportedError("branch", s, "cannot be traced as a whole", "Run the program instead")
    session, stops = _settled(s), list(s.stream_executor.chat_template.stop_str)
    if settings.first_tokens is not None:
        return _group(s, _numbered(_first_tokens(session, settings.first_tokens, stops)))
    if trigger is not None:
        horizon = search.max_tokens or s.stream_executor.default_sampling_para.max_new_tokens
        prefixes, firings = _at_trigger(session, values, horizon, stops)
        return _group(s, _numbered(prefixes), firings)
    chosen = settings.names or [str(number) for number in range(settings.n or 0)]
    return _group(s, dict.fromkeys(chosen))


def _numbered(prefixes: list[LedgerEntry]) -> dict[str, LedgerEntry | None]:
    return {str(number): prefix for number, prefix in enumerate(prefixes)}


def _settled(s: ProgramState) -> Session:
    """The program's session, once everything that was asked of it is done."""
    executor = s.stream_executor
    executor.sync()
    if executor.error_ is not None:
        raise executor.error_
    session = attach(executor)
    session.settle(executor)
    return session


def _group(
    s: ProgramState, prefixes: dict[str, LedgerEntry | None], firings: dict[str, Any] | None = None
) -> Group:
    forks = s.fork(len(prefixes))
    if (error := s.error()) is not None:  # forking caches the shared prefix, which may fail
        raise error
    group = Group(s, dict(zip(prefixes, forks.states, strict=True)), firings)
    for state, prefix in zip(group, prefixes.values(), strict=True):
        if prefix is not None:
            state.stream_executor.backend.begin_with(state.stream_executor, prefix)
    return group


def _first_tokens(session: Session, count: int, stops: list[str]) -> list[LedgerEntry]:
    """The most likely next tokens, in order.

    Raises:
        UnsupportedError: the vocabulary holds fewer.
    """
    try:
        answer = session.client.generate(ranking_body(session.ledger.ids, count))
    except RequestError as error:
        if "logit_bias" not in error.problem:
            raise
        problem = "the vocabulary holds fewer tokens"
        raise UnsupportedError("first_tokens", count, problem, "Ask for fewer") from error
    return _prefixes(session, (), [ranked.token for ranked in read_ranking(answer)], stops)


def _at_trigger(
    session: Session, values: dict[str, Any], horizon: int, stops: list[str]
) -> tuple[list[LedgerEntry], dict[str, Any] | None]:
    """What is generated up to the first firing, with each token that forks there; or all of it.

    Also what the server says of the trigger on the likeliest branch, which it completes; None from one of an
    older version.
    """
    answer = session.client.generate(
        {
            "input_ids": list(session.ledger.ids),
            "sampling_params": {**NEUTRAL, "max_new_tokens": horizon, "stop": stops, "custom_params": values},
        }
    )
    meta, ids = answer["meta_info"], tuple(answer["output_ids"])
    report = meta.get("power")
    check_sampler(values, report)
    fired = report.get("firings")
    firings = None if fired is None else {**fired, "hint": report.get("hint")}
    nodes = report["tree"]["nodes"]
    forked = [node for node in nodes if node["parent"] == 0]
    if forked:
        start = forked[0]["span"][0]
        return _prefixes(session, ids[:start], [node["ids"][0] for node in forked], stops), firings
    reason = meta["finish_reason"]
    kept, text = shown(session.client, Tail(), ids, answer["text"], reason)
    return [_prefix(ids, kept, text, _if_stopped(reason))], firings


def _prefixes(
    session: Session, trunk: tuple[int, ...], tokens: list[int], stops: list[str]
) -> list[LedgerEntry]:
    """A prefix per token; the server itself is asked which of them end the answer, and have no text."""
    reasons = _endings(session, [*session.ledger.ids, *trunk], tokens, stops)
    held = [trunk if end else (*trunk, token) for token, end in zip(tokens, reasons, strict=True)]
    texts = session.client.decode(held)
    return [
        _prefix((*trunk, token), ids, text, reason)
        for token, ids, text, reason in zip(tokens, held, texts, reasons, strict=True)
    ]


def _prefix(drawn: tuple[int, ...], ids: tuple[int, ...], text: str, reason: Reason | None) -> LedgerEntry:
    return LedgerEntry(text, ids, DrawnText(None, drawn, text, prefix=True, reason=reason))


def _if_stopped(reason: Reason) -> Reason | None:
    return reason if reason["type"] == "stop" else None


def _endings(session: Session, prefix: list[int], tokens: list[int], stops: list[str]) -> list[Reason | None]:
    """Which of some next tokens are stops, and of which kind: each is generated once, and the server says."""
    forced = [
        {**NEUTRAL, "max_new_tokens": 1, "top_k": 1, "stop": stops, "logit_bias": {str(token): FORCED}}
        for token in tokens
    ]
    answers = session.client.generate({"input_ids": [prefix] * len(tokens), "sampling_params": forced})
    for token, answer in zip(tokens, answers, strict=True):
        if answer["output_ids"] != [token]:
            raise HostError(f"the server ignored a logit bias for token {token}")
    return [_if_stopped(answer["meta_info"]["finish_reason"]) for answer in answers]
