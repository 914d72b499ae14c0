"""Draws a record as one static HTML page, which opens from disk and asks nobody for anything.

The markup is the same for every record. What differs is one block of JSON, which a script of the page shows
as text; so no string of a record can become an element, an attribute, a style or code. A content security
policy lets the browser run that script and that style alone, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sglang_power.viewer.record import TraceRecord
from sglang_power.viewer.story import sentences
from sglang_power.visible import spelled

SCRIPTS = ("common.js", "tree.js", "chain.js", "main.js")
"""Parts of the page's script, which run in one function."""

_MARKUP = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"}
"""With everything outside of ASCII escaped too, no JSON text ends a script element or a line early."""

_SHOWN = {"\n": "↵\n", "\t": "⇥"}


def rendered(record: TraceRecord, *, source: str) -> str:
    """The page.

    Args:
        record: a valid one.
        source: where it comes from, e.g. a file's name.
    """
    environment = Environment(
        loader=PackageLoader("sglang_power.viewer", "page"), autoescape=True, undefined=StrictUndefined
    )
    parts = "\n".join(_asset(name) for name in SCRIPTS)
    script, style = f'(() => {{\n"use strict";\n{parts}}})();\n', _asset("page.css")
    return environment.get_template("page.html").render(
        script=script,
        style=style,
        script_hash=_hash(script),
        style_hash=_hash(style),
        data=inlined(page_data(record, source)),
    )


def page_data(record: TraceRecord, source: str) -> dict[str, Any]:
    """What the page's script shows; every string in it is visible."""
    params = record.params.items()
    data: dict[str, Any] = _visible_strings(
        {
            "source": source,
            "story": sentences(record),
            "prompt": record.prompt,
            "answer": record.answer,
            "facts": _facts(record),
            "params": [[name, json.dumps(value, ensure_ascii=False)] for name, value in params],
            "run": record.run.model_dump(),
        }
    )
    return data


def _facts(record: TraceRecord) -> list[list[str]]:
    totals = record.totals
    facts = {
        "sampler": record.sampler,
        "seed": record.seed,
        "ended by": record.stopped_by,
        "law of the answer": record.law,
        "log probability of the answer, nats": totals.log_p,
        "tokens of the answer": totals.answer,
        "tokens generated": totals.decoded,
        "of which not used": totals.wasted,
        "prompt tokens computed": totals.prefilled,
        "sequential steps": totals.depth,
        "calls of the model": totals.children,
        "version of sglang-power": record.producer,
    }
    return [[name, str(value)] for name, value in facts.items() if value is not None]


def visible(text: str) -> str:
    """The text with every control and direction character spelled out, e.g. as ⟨U+202E⟩."""
    return "".join(_SHOWN.get(character) or spelled(character) for character in text)


def _visible_strings(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, list):
        return [_visible_strings(item) for item in value]
    if isinstance(value, dict):
        return {key: _visible_strings(item) for key, item in value.items()}
    return value


def inlined(data: Any) -> str:
    """JSON that may stand inside of a script element."""
    return json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":")).translate(_MARKUP)


def _asset(name: str) -> str:
    return resources.files("sglang_power.viewer").joinpath("page", name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    """Return the name of an inline element in a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
