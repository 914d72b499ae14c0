"""Leads: limits and stops act on them; what would have shaped their tokens is refused. A scripted server."""

from __future__ import annotations

from typing import Any

import pytest
from scripted_program import BOS, STOP, Program, begun, generate, session_with
from scripted_server import EOS, ScriptedServer, answer, text_of
from sglang.lang.ir import SglSamplingParams
from sglang_power.errors import UnsupportedError
from sglang_power.frontend.session import SegmentRequest, Session

SPECIAL = EOS + 5
SPELLED = f"<{SPECIAL}>"


def behind(
    prefix: list[int], *answers: Any, finished: bool = False
) -> tuple[Session, ScriptedServer, Program]:
    """A program that goes on behind a prefix."""
    session, fake = session_with(*answers)
    s = Program("x")
    session.settle(s)
    session.begin_with(s, begun(prefix, finished))
    return session, fake, s


def cut(length: int) -> dict[str, Any]:
    return {"type": "length", "length": length}


def stopped(matched: str | int) -> dict[str, Any]:
    return {"type": "stop", "matched": matched}


@pytest.mark.parametrize(
    ("prefix", "settings", "drawn", "reason", "text"),
    [
        ([*b"w1;w2;"], {"stop": ";"}, [*b"w1;"], stopped(";"), "w1"),
        ([*b"w1; w2"], {"stop": ["w2", "; "]}, [*b"w1; "], stopped("; "), "w1"),
        ([*b"w1;w2"], {"stop_token_ids": [ord(";")]}, [*b"w1;"], stopped(ord(";")), "w1"),
        ([*b"a;b"], {"stop": "b", "stop_token_ids": [ord("b")]}, [*b"a;b"], stopped("b"), "a;"),
        ([*b"a;b"], {"stop": "b", "stop_token_ids": [ord(";")]}, [*b"a;"], stopped(ord(";")), "a"),
        ([*b"a", SPECIAL, *b"b"], {"stop": SPELLED}, [*b"a", SPECIAL], stopped(SPELLED), "a"),
        ([*b"abcd"], {"max_new_tokens": 2}, [*b"ab"], cut(2), "ab"),
        ([*b"ab;"], {"max_new_tokens": 2, "stop": ";"}, [*b"ab"], cut(2), "ab"),
        ([*"é;".encode()], {"max_new_tokens": 1}, [0xC3], cut(1), "�"),
    ],
)
def test_a_segment_that_ends_inside_its_prefix_is_cut_there(
    prefix: list[int], settings: dict[str, Any], drawn: list[int], reason: dict[str, Any], text: str
) -> None:
    session, fake, s = behind(prefix)
    session.asked = SegmentRequest("x", {"sampler": "power"})
    shown, meta = session.generate(s, SglSamplingParams(**settings))
    assert (shown, meta) == (text, {"finish_reason": reason, "completion_tokens": len(drawn)})
    draw = session.ledger.last_draw()
    assert draw is not None
    assert (draw.ids, draw.exponent, session.ledger.text) == ((*drawn,), None, f"x{text}")
    assert text_of(session.ledger.ids) == f"x{text}"
    assert fake.generated() == []


@pytest.mark.parametrize(
    ("limit", "drawn", "reason"), [(9, (*b"ab", EOS), STOP), (3, (*b"ab", EOS), STOP), (2, (*b"ab",), cut(2))]
)
def test_a_prefix_that_ended_says_so_where_the_limit_lets_it(
    limit: int, drawn: tuple[int, ...], reason: dict[str, Any]
) -> None:
    session, _, s = behind([*b"ab"], finished=True)
    text, meta = session.generate(s, SglSamplingParams(max_new_tokens=limit))
    assert (text, meta) == ("ab", {"finish_reason": reason, "completion_tokens": len(drawn)})
    draw = session.ledger.last_draw()
    assert draw is not None
    assert draw.ids == drawn


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dtype", int),
        ("regex", r"\d+"),
        ("json_schema", "{}"),
        ("stop_regex", "[.]"),
        ("min_new_tokens", 3),
        ("ignore_eos", True),
        ("frequency_penalty", 0.5),
        ("presence_penalty", 0.5),
    ],
)
def test_what_would_have_shaped_a_prefix_is_refused_behind_it(name: str, value: Any) -> None:
    session, fake, s = behind([*b"A"])
    with pytest.raises(UnsupportedError) as caught:
        generate(session, s, **{name: value})
    assert (caught.value.field, fake.generated()) == (name, [])


@pytest.mark.parametrize(
    ("prefix", "rest", "stop", "text", "held"),
    [
        ([*b"a;"], [*b"\nb"], [";\n"], "a", [*b"a"]),
        ([*b"a;"], [*b"b;\n"], [";\n"], "a;b", [*b"a;b"]),
        ([*b"a;"], [*b"bc"], ["c", ";\n"], "a;b", [*b"a;b"]),
        ([*b"a;"], [*b"bc"], [";\n"], "a;bc", [*b"a;bc"]),
        ([*b"a", 0xC3], [0xA9, *b"b"], ["é"], "a", [*b"a"]),
        ([*b"a", 0xC3], [0xA9, *b"b"], ["ab"], "aéb", [*"aéb".encode()]),
    ],
)
def test_a_stop_that_spans_the_end_of_a_prefix_is_found(
    prefix: list[int], rest: list[int], stop: list[str], text: str, held: list[int]
) -> None:
    """The server is shown the rest alone; it stops where it sees a stop in that."""
    seen = next((one for one in stop if text_of(rest).endswith(one)), None)
    made = answer(rest, None if seen is None else stopped(seen))
    made["text"] = text_of(rest).removesuffix(seen or "")
    session, fake, s = behind(prefix, made)
    assert generate(session, s, stop=stop) == text
    assert (session.ledger.text, session.ledger.ids) == (f"x{text}", (BOS, *b"x", *held))
    assert fake.generated()[0]["input_ids"] == [BOS, *b"x", *prefix]


def test_a_stream_that_might_take_text_back_comes_at_once() -> None:
    session, fake, s = behind([*b"a;"], answer([*b"\nb"]))
    session.asked = SegmentRequest("x", None)
    pieces = list(session.generate_stream(s, SglSamplingParams(stop=";\n")))
    assert [(text, meta["finish_reason"]) for text, meta in pieces] == [("a", stopped(";\n"))]
    assert "stream" not in fake.generated()[0]
