"""A program's session: which ids it sends, which text it shows, and what it refuses. A scripted server."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from scripted_program import BOS, STOP, Program, begun, generate, sent, session_with
from scripted_server import EOS, answer, text_of
from sglang.lang.ir import SglSamplingParams
from sglang_power.errors import HostError, RequestError, UnsupportedError
from sglang_power.frontend.session import SegmentRequest, Session


def test_ids_of_segments_are_kept_and_text_is_encoded_once() -> None:
    session, fake = session_with(answer([*b"two", EOS], STOP), answer([*b"four"]))
    s = Program("one ")
    assert generate(session, s) == "two"
    s.text_ += " three "
    assert generate(session, s) == "four"
    assert sent(fake) == [[BOS, *b"one "], [BOS, *b"one two three "]]
    session.settle(s)
    session.settle(s)
    assert [body["prompt"] for path, body in fake.requests if path == "/tokenize"] == [[" three "]]
    assert session.ledger.text == s.text_ == "one two three four"


def test_a_forked_session_goes_its_own_way() -> None:
    session, _ = session_with(answer([*b"a"]), answer([*b"b"]))
    s = Program("one ")
    generate(session, s)
    own = Program(s.text_)
    fork = session.forked(own)
    generate(fork, own)
    assert (session.ledger.text, fork.ledger.text) == ("one a", "one ab")


def test_a_program_ends_the_forks_that_are_left_and_each_once() -> None:
    session, _ = session_with()
    forks = [Program() for _ in range(3)]
    for fork in forks:
        fork.backend = session.forked(fork)
    nested = Program()
    nested.backend = forks[1].backend.forked(nested)
    forks[0].end()
    for _ in range(2):
        session.end_program(Program())
    assert [fork.ends for fork in (*forks, nested)] == [1, 1, 1, 1]
    assert session.ended


@pytest.mark.parametrize("cuts", [(1,), (2,), (3,), (1, 2), (1, 3), (1, 2, 3), (5,), (2, 5)])
def test_segments_that_split_characters_show_the_text_of_all_their_tokens(cuts: tuple[int, ...]) -> None:
    whole = "😀é".encode()
    bounds = [0, *cuts, len(whole)]
    parts = [list(whole[a:b]) for a, b in itertools.pairwise(bounds)]
    session, _ = session_with(*(answer(part) for part in parts))
    s = Program("x")
    texts = [generate(session, s) for _ in parts]
    assert s.text_ == "x😀é" == text_of(session.ledger.ids[1:])
    assert texts[0] == text_of(parts[0])


def test_bytes_that_are_no_character_stay_what_the_server_shows() -> None:
    parts = [[0xF0], [0x9F, 0x41], [0x80], [0x42]]
    session, _ = session_with(*map(answer, parts))
    s = Program("x")
    for _ in parts:
        generate(session, s)
    assert s.text_ == "x" + text_of([0xF0, 0x9F, 0x41, 0x80, 0x42])


@pytest.mark.parametrize(("prefix", "drawn"), [([*b"ab"], [*b"cd"]), ([0xC3], [0xA9, *b"d"])])
def test_a_prefix_begins_the_next_segment_and_counts(prefix: list[int], drawn: list[int]) -> None:
    session, fake = session_with(answer(drawn))
    s = Program("x")
    session.settle(s)
    session.begin_with(s, begun(prefix))
    assert s.text_ == "x" + text_of(prefix)
    assert generate(session, s, max_new_tokens=10) == text_of(prefix + drawn)
    assert s.text_ == "x" + text_of(prefix + drawn)
    body = fake.generated()[0]
    assert body["input_ids"] == [BOS, *b"x", *prefix]
    assert body["sampling_params"]["max_new_tokens"] == 10 - len(prefix)
    assert session.ledger.last_draw() is not None


@pytest.mark.parametrize("finished", [True, False])
def test_a_prefix_that_is_the_whole_answer_asks_for_nothing(finished: bool) -> None:
    session, fake = session_with()
    s = Program("x")
    session.settle(s)
    session.begin_with(s, begun([*b"ab"], finished))
    assert generate(session, s, max_new_tokens=9 if finished else 2) == "ab"
    assert fake.generated() == []
    draw = session.ledger.last_draw()
    assert draw is not None
    assert (draw.name, draw.text, draw.prefix, session.ledger.ids) == ("x", "ab", False, (BOS, *b"xab"))
    assert draw.ids == ((*b"ab", EOS) if finished else (*b"ab",)), "what ended the answer was drawn, too"


def test_a_stop_string_leaves_tokens_in_front_of_it() -> None:
    ids = [*b"one;two"]
    made = {**answer(ids, {"type": "stop", "matched": ";two"}), "text": "one"}
    session, _ = session_with(made)
    s = Program("x")
    generate(session, s)
    piece = session.ledger.pieces[-1]
    assert (piece.text, piece.ids) == ("one", (*b"one",))
    assert piece.draw is not None
    assert piece.draw.ids == (*ids,)


@pytest.mark.parametrize("ran", [{"sampler": "cot"}, {"sampler": "none", "fallback_reason": "busy"}, None])
def test_an_answer_of_another_sampler_is_an_error(ran: Any) -> None:
    session, _ = session_with(answer([*b"a"], **({} if ran is None else {"power": ran})))
    with pytest.raises(HostError, match="'power' was asked for"):
        generate(session, Program("x"), values={"sampler": "power"})


def test_the_right_sampler_is_none() -> None:
    power = {"sampler": "power", "law": "power", "params": {"alpha": 3.0}}
    session, _ = session_with(answer([*b"a"], power=power))
    assert generate(session, Program("x"), values={"sampler": "power", "alpha": 3.0}) == "a"
    draw = session.ledger.last_draw()
    assert draw is not None
    assert draw.exponent == 3.0


def stream(session: Session, s: Program) -> list[str]:
    """Pieces of a stream, added as the interpreter does."""
    session.asked = SegmentRequest("x", None)
    pieces = []
    for piece, _ in session.generate_stream(s, SglSamplingParams()):
        s.text_ += piece
        pieces.append(piece)
    return pieces


def events(*ids: Sequence[int]) -> list[dict[str, Any]]:
    """Cumulative ones, the last of which says how it ended."""
    made = [answer(list(one)) for one in ids]
    for one in made[:-1]:
        one["meta_info"]["finish_reason"] = None
    return made


def test_a_stream_yields_every_event_and_completes_characters() -> None:
    session, _ = session_with(answer([0xC3]), events([], [0xA9], [0xA9, *b"b"]))
    s = Program("x")
    generate(session, s)
    assert stream(session, s) == ["", "é", "b"]
    assert s.text_ == "xéb" == text_of(session.ledger.ids[1:])


def test_streams_that_break_or_take_text_back_are_errors() -> None:
    deltas = events([*b"a"], [*b"b"])
    unfinished = events([*b"a"], [*b"ab"])[:1]
    aborted = [answer([], {"type": "abort", "message": "gone"})]
    for made, message in ((deltas, "took text back"), (unfinished, "before its answer"), (aborted, "gone")):
        session, _ = session_with(made)
        with pytest.raises(HostError, match=message):
            stream(session, Program("x"))


def test_images_and_several_answers_are_refused() -> None:
    session, fake = session_with()
    with pytest.raises(UnsupportedError, match="image"):
        session.settle(Program("x", ["picture"]))
    with pytest.raises(UnsupportedError, match="n=2"):
        generate(session, Program("x"), n=2)
    assert fake.generated() == []


def test_only_the_last_segment_is_taken_back() -> None:
    session, _ = session_with(answer([*b"ab", EOS], STOP))
    s = Program("x")
    generate(session, s, name="a")
    with pytest.raises(RequestError, match="generated last"):
        session.withdraw(s, "b")
    s.text_ += "!"
    with pytest.raises(RequestError, match="generated last"):
        session.withdraw(s, "a")
    s.text_ = s.text_[:-1]
    assert session.withdraw(s, "a").ids == (*b"ab", EOS)
    assert (s.text_, session.ledger.text) == ("x", "x")


@pytest.mark.parametrize(
    ("reason", "stops", "drawn"),
    [
        (STOP, {}, (*b"ab", EOS)),
        ({"type": "stop", "matched": ";"}, {"stop": ";"}, (*b"ab;",)),
        ({"type": "stop", "matched": ";"}, {"stop": ["x", ";"]}, (*b"ab;",)),
        ({"type": "stop", "matched": "[ab]b"}, {"stop_regex": "[ab]b"}, (*b"ab",)),
        ({"type": "stop", "matched": "b"}, {"stop": "b"}, (*b"ab",)),
        ({"type": "length", "length": 2}, {}, (*b"ab",)),
    ],
    ids=["token", "string", "one of several", "pattern", "string left in the text", "length"],
)
def test_a_segment_from_before_the_first_expression_is_taken_in(
    reason: dict[str, Any], stops: dict[str, Any], drawn: tuple[int, ...]
) -> None:
    session, _ = session_with()
    s = Program("x")
    session.settle(s)
    session.adopt(s, "a", "ab", reason, SglSamplingParams(**stops))
    assert (s.text_, session.ledger.ids) == ("xab", (BOS, *b"xab"))
    assert session.withdraw(s, "a").ids == drawn, "the draft ends as the segment did"
