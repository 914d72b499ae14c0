"""Draws request bodies for the fuzz tests: right ones, which are cheap, and wrong ones. By hypothesis.

Parameters come from the JSON schemas of the request models, so that a sampler is drawn from as soon as it
is registered. Every body names a sampler: what SGLang makes of plain ones is not this project's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from sglang_power.request import samplers

from integration_tests.helpers.contract import CONTRACT

Json = dict[str, Any]
T = TypeVar("T")

MARK = "zq9mark"
"""Stands in hostile strings: nothing with it may become a path, a program or an address."""

TOKENS = 8
"""The longest answer that most bodies ask for."""

GENERATE, VERTEX, COMPLETIONS, CHAT = (
    "/generate",
    "/vertex_generate",
    "/v1/completions",
    "/v1/chat/completions",
)
INVOCATIONS, RESPONSES, MESSAGES = "/invocations", "/v1/responses", "/v1/messages"
OLLAMA_CHAT, OLLAMA = "/api/chat", "/api/generate"
ROUTES = (GENERATE, VERTEX, COMPLETIONS, CHAT, INVOCATIONS, RESPONSES, MESSAGES, OLLAMA_CHAT, OLLAMA)

ATTACKS = (
    f"../../../../tmp/{MARK}",
    f"/etc/{MARK}\x00.yaml",
    f"__import__('os').system('{MARK}')",
    f"!!python/object/apply:os.system ['{MARK}']",
    f"{{{{ {MARK}.__class__ }}}}",
    f"http://127.0.0.1:9/{MARK}",
    f"file:///tmp/{MARK}",
    f"</script><img src=x onerror={MARK}>",
    f"{MARK}; DROP TABLE x --",
    f"%s%n{{0}}{MARK}",
    "cos\nsystem\n(S'" + MARK + "'\ntR.",
    "\U0001f600\u202e\u0000\ufffe",
    "\ud83d half of a pair",
    "x" * 5000,
)

NUMBERS: tuple[Any, ...] = (
    0,
    -1,
    1,
    2**31 - 1,
    2**31,
    2**63,
    2**64,
    -(2**63),
    10**30,
    0.0,
    -0.5,
    1e-320,
    1e308,
    1e-9,
)


def texts() -> st.SearchStrategy[str]:
    """Strings of every kind, hostile ones among them."""
    return st.sampled_from(ATTACKS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def values() -> st.SearchStrategy[Any]:
    """Any JSON."""
    leaves = (
        st.none()
        | st.booleans()
        | st.sampled_from(NUMBERS)
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | texts()
    )
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts(), inner, max_size=4),
        max_leaves=8,
    )


# --- right ones --------------------------------------------------------------------------------------


def right(schema: Json) -> st.SearchStrategy[Any]:
    """A value that one field takes, small where it is a number."""
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema:
        return st.one_of(
            [right(each) for each in schema["anyOf"] if each.get("type") != "null"] or [st.none()]
        )
    kind = schema.get("type")
    if kind == "boolean":
        return st.booleans()
    if kind == "integer":
        low = int(schema.get("minimum", 0))
        return st.integers(low, min(int(schema.get("maximum", low + 4)), low + 4))
    if kind == "number":
        above, below = "exclusiveMinimum" in schema, "exclusiveMaximum" in schema
        least = float(schema["exclusiveMinimum"] if above else schema.get("minimum", 0.0))
        most = float(schema["exclusiveMaximum"] if below else schema.get("maximum", least + 4.0))
        return st.floats(least, min(most, least + 4.0), exclude_min=above, exclude_max=below)
    if kind == "string":
        return st.sampled_from(["g", "number", "well", "[0-9]+", "R7+3:"])
    if kind == "array":
        return st.lists(right(schema.get("items", {"type": "integer"})), min_size=1, max_size=3)
    return st.just({"sampler": "edt"})  # a policy, or a base


def _cheap() -> list[Json]:
    """Parameters that are right for certain, one set per sampler that has a row."""
    policies: list[Json] = [
        {"sampler": "top_n_sigma", "n": 1.5},
        {"sampler": "min_p", "p": 0.1},
        {"sampler": "edt"},
    ]
    return [row.quick for name, row in CONTRACT.items() if name != "shortlist"] + policies


@st.composite
def parameters(draw: st.DrawFn) -> Json:
    """Parameters of a sampler: right for certain, with a few more, of which each is right alone."""
    chosen = dict(draw(st.sampled_from(_cheap())))
    model = samplers().get(chosen["sampler"])
    if model is None or draw(st.integers(0, 2)):
        return chosen
    fields = {name: one for name, one in model.model_json_schema()["properties"].items() if name != "sampler"}
    for name in draw(st.lists(st.sampled_from(sorted(fields)), max_size=2, unique=True)):
        chosen[name] = draw(right(fields[name]))
    return chosen


def _more() -> dict[str, st.SearchStrategy[Any]]:
    """Sampling fields that SGLang and OpenAI have, with right values."""
    return {
        "seed": st.integers(0, 2**31 - 1),
        "stop": st.sampled_from([";", "A", ["A2.", "w7"], "\n"]),
        "ignore_eos": st.booleans(),
        "min_new_tokens": st.integers(0, 3),
        "logit_bias": st.dictionaries(st.sampled_from(["33", "65", "105"]), st.floats(-5, 5), max_size=2),
        "temperature": st.sampled_from([1, 1.0, 0.0, 0.7]),
        "top_p": st.sampled_from([1.0, 0.9]),
        "top_k": st.sampled_from([-1, 5]),
        "regex": st.sampled_from(["[0-9]{1,4}", "(g|w)[0-9]"]),
        "skip_special_tokens": st.booleans(),
    }


@st.composite
def bodies(draw: st.DrawFn, path: str) -> Json:
    """A right body of a route, as far as each of its fields is concerned."""
    custom, n = draw(parameters()), draw(st.sampled_from([1, 1, 1, 2]))
    tokens, stream = draw(st.integers(1, TOKENS)), draw(st.booleans())
    more = {
        name: draw(strategy)
        for name, strategy in sorted(_more().items())
        if draw(st.integers(0, 9)) == 0  # most requests say little
    }
    prompt = draw(st.sampled_from(["R7+3*2-8:", "Q7+3:", "R", "\u00e9\u4e2d\U0001f600", "S1,2,3:"]))
    return placed(path, prompt, custom, tokens, n, stream, more)


def placed(path: str, prompt: str, custom: Json, tokens: int, n: int, stream: bool, more: Json) -> Json:
    """A body of a route, from what all routes can say."""
    message = [{"role": "user", "content": prompt}]
    if path in (GENERATE, VERTEX):
        sampling = {"max_new_tokens": tokens, "n": n, "custom_params": custom, **more}
        if path == GENERATE:
            return {"text": prompt, "sampling_params": sampling, "stream": stream}
        return {"instances": [{"text": prompt}], "parameters": {"sampling_params": sampling}}
    if path in (OLLAMA, OLLAMA_CHAT):
        options = {
            "num_predict": tokens,
            **custom,
            **{k: v for k, v in more.items() if k in ("seed", "stop")},
        }
        asked: Json = {"messages": message} if path == OLLAMA_CHAT else {"prompt": prompt}
        return {"model": "pivot", "stream": stream, **asked, "options": options}
    common: Json = {"model": "pivot", "stream": stream, "sglang_power": custom}
    if path == RESPONSES:
        return {**common, "input": prompt, "max_output_tokens": tokens}
    if path == MESSAGES:
        return {**common, "messages": message, "max_tokens": tokens}
    asked = {"prompt": prompt} if path == COMPLETIONS else {"messages": message}
    return {**common, **asked, "max_tokens": tokens, "n": n, **more}


# --- wrong ones --------------------------------------------------------------------------------------


@st.composite
def spoilt(draw: st.DrawFn, of: st.SearchStrategy[Json], keep: Sequence[str] = ()) -> Any:
    """A document with one to three of its values replaced, removed, renamed or added.

    Args:
        of: the documents.
        keep: keys whose values stay.
    """
    document = json.loads(json.dumps(draw(of)))
    for _ in range(draw(st.integers(1, 3))):
        holder = document
        while True:
            keys = [
                key
                for key in (sorted(holder) if isinstance(holder, dict) else range(len(holder)))
                if key not in keep
            ]
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            inner = holder[key]
            if isinstance(inner, dict | list) and inner and draw(st.integers(0, 3)):
                holder = inner
                continue
            _spoil(draw, holder, key)
            break
    return document


def _spoil(draw: st.DrawFn, holder: Any, key: Any) -> None:
    act = draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename", "add"]))
    if act == "replace" or isinstance(holder, list):
        holder[key] = draw(values())
    elif act == "remove":
        del holder[key]
    elif act == "rename":
        holder[draw(texts())] = holder.pop(key)
    else:
        holder[draw(texts())] = draw(values())


# --- as many as are wanted ---------------------------------------------------------------------------


def drawn(strategy: st.SearchStrategy[T], count: int, number: int) -> list[T]:
    """Return so many draws of a strategy, the same ones for the same number.

    Args:
        strategy: what is drawn.
        count: how many.
        number: of the seed.
    """
    found: list[T] = []

    def collect(one: T) -> None:
        found.append(one)

    as_many = settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )
    run: Callable[[], None] = seed(number)(as_many(given(strategy)(collect)))
    run()
    return found
