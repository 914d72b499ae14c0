"""Stops: what of them the text shows, and which tokens stay in front of what follows. A scripted server."""

from __future__ import annotations

from typing import Any

import pytest
from scripted_program import BOS, Program, generate, session_with
from scripted_server import EOS, answer, text_of

TURN_END = "<|im_end|>"
"""What chat templates add to the stops; SGLang reports it as a string, though it is one special token."""

ENDED = {"type": "stop", "matched": TURN_END}


@pytest.mark.parametrize(
    ("drawn", "held"),
    [
        ([*b"hi", EOS], [*b"hi"]),
        ([EOS], []),
        ([*b"hi", EOS + 5, EOS], [*b"hi", EOS + 5]),
    ],
)
def test_a_turn_that_ends_by_itself_leaves_its_end_to_the_template(drawn: list[int], held: list[int]) -> None:
    session, _ = session_with(answer(drawn, ENDED))
    s = Program("x")
    assert generate(session, s) == text_of(held)
    assert session.ledger.ids == (BOS, *b"x", *held)
    draw = session.ledger.last_draw()
    assert draw is not None
    assert draw.ids == (*drawn,), "it was drawn, and counts in log p"


@pytest.mark.parametrize(
    ("drawn", "pattern"), [([*b"abc 5."], r"\d\."), ([*b"hi!"], "!$"), ([*"né".encode()], "[é]")]
)
def test_the_match_of_a_stop_pattern_stays(drawn: list[int], pattern: str) -> None:
    session, _ = session_with(answer(drawn, {"type": "stop", "matched": pattern}))
    s = Program("x")
    assert generate(session, s, stop_regex=pattern) == text_of(drawn)
    assert session.ledger.ids == (BOS, *b"x", *drawn)


@pytest.mark.parametrize("times", [1, 2])
def test_a_segment_that_begins_inside_a_character_is_refined_as_such(times: int) -> None:
    parts = [[0xE2], [0x82], [0xAC, *b"d"], *[[0xAC, *b"z"]] * times]
    session, _ = session_with(*map(answer, parts))
    s = Program("x")
    for name in "abc":
        generate(session, s, name)
    for _ in range(times):
        assert session.withdraw(s, "c").ids[:1] == (0xAC,)
        assert s.text_ == session.ledger.text == text_of(session.ledger.ids)
        assert generate(session, s, "c") == "€z"
    assert s.text_ == session.ledger.text == "x€z" == text_of(session.ledger.ids)


@pytest.mark.parametrize(
    ("rest", "reason", "text"),
    [
        ([0xA9, *b"hello", EOS], ENDED, "éhello"),
        ([0xA9, *b"one 5."], {"type": "stop", "matched": r"\d\."}, "éone 5."),
        ([0xA9, *b"a;b"], {"type": "stop", "matched": ";"}, "éa"),
        ([0xA9, *b"a;"], {"type": "stop", "matched": ord(";")}, "éa"),
    ],
)
def test_stops_of_a_segment_that_begins_inside_a_character(
    rest: list[int], reason: dict[str, Any], text: str
) -> None:
    session, _ = session_with(answer([0xC3]), answer(rest, reason))
    s = Program("x")
    generate(session, s)
    assert generate(session, s) == text
    session.settle(s)
    assert s.text_ == f"x{text}" == text_of(session.ledger.ids[1:])
