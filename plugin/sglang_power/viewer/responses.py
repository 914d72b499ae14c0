"""From what a server answered to a record: /generate responses, and those of the OpenAI routes.

Goes by what a report holds, whatever sampler wrote it: `trace` is a chain, `tree` is a tree, `paths` alone
are a tree of one level. What is missing is named, nothing is guessed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue
from pydantic_core import from_json

from sglang_power.errors import RecordError
from sglang_power.viewer.record import FORMAT, TraceRecord, validated
from sglang_power.viewer.reports import SAVED, Branch, ReportedPath, SavedReport, checked

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Answer:
    """One choice of a response: its text, its report and where that stood, its length where it is told."""

    text: Any
    report: Any
    where: str
    tokens: Any = None


def read_record(data: str | bytes, *, index: int = 0, prompt: str | None = None) -> TraceRecord:
    """The record in a file that holds one, or a saved response.

    Args:
        data: JSON.
        index: which choice of a response with several.
        prompt: its text, which responses do not hold; None leaves it as it is.

    Raises:
        RecordError: neither a record nor a response with a trace.
    """
    try:
        content = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise RecordError("file", f"not JSON: {error}", SAVED) from None
    if isinstance(content, dict) and content.get("format") == FORMAT:
        record = validated(content)
    else:
        record = record_of(content, index=index)
    return record if prompt is None else record.model_copy(update={"prompt": prompt})


def record_of(response: Json | list[Json], *, index: int = 0) -> TraceRecord:
    """The record of one answer.

    Args:
        response: as a server gave it: of /generate (a list where several were asked for), or of an OpenAI
            route with `metadata.power`.
        index: which choice.

    Raises:
        RecordError: it holds no trace; says what to ask for.
    """
    answer = _answer(response, index)
    report = checked(answer.report, answer.where)
    return validated(
        {
            "producer": report.version,
            "sampler": report.sampler,
            "params": report.params,
            "seed": report.seed,
            "answer": answer.text,
            "law": report.law,
            "stopped_by": report.stopped_by,
            "totals": _totals(report, answer.tokens),
            "run": _run(report),
        }
    )


def _answer(response: Json | list[Json], index: int) -> _Answer:
    if isinstance(response, dict) and "choices" in response:
        choice = _item(response["choices"], "choices", index)
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else choice.get("text")
        metadata = response.get("metadata")
        reports = metadata.get("power") if isinstance(metadata, dict) else None
        return _Answer(text, _item(reports, "metadata.power", index), f"metadata.power.{index}")
    answer = _item(response if isinstance(response, list) else [response], "response", index)
    meta = answer.get("meta_info")
    meta = meta if isinstance(meta, dict) else {}
    return _Answer(answer.get("text"), meta.get("power"), "meta_info.power", meta.get("completion_tokens"))


def _item(items: Any, where: str, index: int) -> Json:
    if not isinstance(items, list) or not 0 <= index < len(items) or not isinstance(items[index], dict):
        raise RecordError(where, f"has no entry {index}", SAVED)
    item: Json = items[index]
    return item


def _totals(report: SavedReport, answer_tokens: Any) -> Json:
    return {
        "decoded": report.decoded_tokens,
        "prefilled": report.prefilled_tokens,
        "wasted": report.wasted_tokens,
        "depth": report.depth,
        "children": report.children,
        "answer": answer_tokens,
        "log_p": report.log_p,
    }


def _run(report: SavedReport) -> Json:
    if report.trace is not None:
        horizon, alpha = report.params.get("max_new_tokens"), report.params.get("alpha")
        return {"kind": "chain", "horizon": horizon, "alpha": alpha, "steps": report.trace}
    paths = report.paths or []
    if report.tree is None:
        root = {"parent": None, "start": 0, "end": 0, "text": "", "log_p": 0.0, "fate": "forked"}
        nodes = [root, *(_leaf(path) for path in paths)]
        leaves, omitted = list(range(1, len(nodes))), 0
    else:
        nodes = [_node(node) for node in report.tree.nodes]
        leaves, omitted = report.tree.leaves, report.tree.omitted
        for number, path in zip(leaves, paths, strict=True):
            if number < len(nodes):
                nodes[number] |= _found(path)
    run = {
        "kind": "tree",
        "nodes": nodes,
        "omitted": omitted,
        "triggers": _triggers(report.params),
        "capped": [{"name": name, **cap.model_dump()} for name, cap in report.capped_by.items()],
        "hint": report.hint,
    }
    return {**run, **_choice(report, leaves, nodes)}


def _leaf(path: ReportedPath) -> Json:
    """A path as a branch of the prompt."""
    return {
        "parent": 0,
        "start": 0,
        "end": path.tokens,
        "text": path.text,
        "log_p": path.log_p,
        "first_log_p": path.first_log_p,
        "entropy": path.mean_entropy,
        "fate": "leaf",
        **_found(path),
    }


def _node(node: Branch) -> Json:
    start, end = node.span
    return {**node.model_dump(exclude={"span"}), "start": start, "end": end}


def _found(path: ReportedPath) -> Json:
    """What reading a whole answer gave."""
    return {"answer": path.answer, "confidence": path.confidence, "score": path.score, "note": path.note}


def _choice(report: SavedReport, leaves: Sequence[int], nodes: list[Json]) -> Json:
    """Classes and the winner, told by nodes instead of paths; nodes that are omitted are left out."""
    assert report.chosen is not None
    count = len(nodes)
    classes = [
        {**group.model_dump(), "members": [leaves[path] for path in group.members if leaves[path] < count]}
        for group in report.classes
    ]
    winner = leaves[report.chosen.index]
    if winner < count:
        nodes[winner]["fate"] = "chosen"
    return {
        "classes": classes,
        "chosen": winner if winner < count else None,
        "reason": report.chosen.reason,
    }


def _triggers(params: dict[str, JsonValue]) -> list[Json]:
    """What forks; a sampler without triggers has none. A lone trigger stands without a list around it."""
    named, thresholds = params.get("trigger"), params.get("threshold")
    if named is None:
        return []
    if not isinstance(named, list):
        named, thresholds = [named], [thresholds]
    pairs = itertools.zip_longest(named, thresholds if isinstance(thresholds, list) else [])
    return [{"name": name, "thresholds": values} for name, values in pairs]
