"""Stems, what is appended to them, and where the answer of a continuation was in the path.

Deterministic. Error rate 0.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang_power.answers import CONTINUATION, Aligned, Extracted, Spelled, Stem, align, stem
from sglang_power.answers.continuation import Statement, last_occurrence


def path(*pieces: str) -> Spelled:
    """A path of tokens with these texts."""
    ends = [len("".join(pieces[: i + 1])) for i in range(len(pieces))]
    return Spelled("".join(pieces), tuple(zip([0, *ends], ends, strict=False)))


@pytest.mark.parametrize(
    ("pieces", "matched", "expected"),
    [
        (["It ", "is 4", "."], None, Stem(3, "It is 4.", "")),
        (["It ", "is 4", ""], 7, Stem(2, "It is 4", "")),
        (["It ", "is 4", "<eos>"], 7, Stem(2, "It is 4", "")),
        (["4", "\n", "\n"], "\n\n", Stem(1, "4", "")),
        (["It is", " 4\n\nQ"], "\n\n", Stem(1, "It is 4", " 4")),
        (["4 ", "Q", ": 5", " Q:"], "Q:", Stem(1, "4 ", "")),
        (["4"], "absent", Stem(1, "4", "")),
        ([""], 7, Stem(0, "", "")),
        ([], 7, Stem(0, "", "")),
    ],
)
def test_the_final_stop_is_stripped(pieces: list[str], matched: int | str | None, expected: Stem) -> None:
    assert stem(path(*pieces), matched) == expected


@given(st.lists(st.text("ab", max_size=3), max_size=8), st.text("ab", min_size=1, max_size=3))
@settings(derandomize=True, database=None, deadline=None)
def test_tokens_and_tail_spell_the_stem(pieces: list[str], stop: str) -> None:
    found = stem(path(*pieces), stop)
    assert "".join(pieces[: found.tokens]) + found.tail == found.text


def test_what_is_appended() -> None:
    assert CONTINUATION == "So the answer is"
    assert Stem(2, "It is 4.", "").appended() == " So the answer is"
    assert Stem(2, "It is 4.\n", "").appended() == "So the answer is"
    assert Stem(1, "It is 4", " 4").appended() == " 4 So the answer is"
    assert Stem(0, "", "").appended("Answer:") == "Answer:"


@pytest.mark.parametrize(
    ("text", "statement"),
    [
        (" 42.\n", "42"),
        (": 3.5 apples. Then", "3.5 apples"),
        ("\n\n 42\nQ:", "42"),
        (" **42**.", "42"),
        (" Paris! Yes", "Paris"),
        (" $x^2$.", "$x^2$"),
        (" .5", ".5"),
        ("... ok", "ok"),
        (" \n", None),
        (".", None),
    ],
)
def test_the_first_sentence_is_the_statement(text: str, statement: str | None) -> None:
    found = Statement().extract(text)
    assert (found and found.value) == statement
    assert found is None or text[slice(*found.span)] == statement


@pytest.mark.parametrize(
    ("answer", "text", "at"),
    [
        ("4", "4 and 4 is it", 6),
        ("4", "14, 4 and 24", 4),
        ("4", "A4.", 1),
        ("4", "24", None),
        ("4", "4.5 and 1,4", None),
        ("4", "is 4, or 4.", 9),
        ("cat", "concat cat cats", 7),
        ("a b", "a b, a b", 5),
        ("aa", "aa aaa", 0),
        ("?", "", None),
        ("", "abc", None),
    ],
)
def test_the_last_occurrence_that_is_no_part_of_another(answer: str, text: str, at: int | None) -> None:
    assert last_occurrence(answer, text) == (None if at is None else (at, at + len(answer)))


@given(st.text("a4 .,", max_size=20), st.text("a4", min_size=1, max_size=3), st.text(" .;", max_size=5))
@settings(derandomize=True, database=None, deadline=None)
def test_an_answer_that_was_just_said_is_found_where_it_was_said(
    before: str, answer: str, after: str
) -> None:
    text = f"{before} {answer} {after}"
    assert last_occurrence(answer, text) == (len(before) + 1, len(before) + 1 + len(answer))


def test_the_answer_is_aligned_to_its_last_occurrence_in_the_path() -> None:
    text = "3+4=7 so 7 apples"
    assert align(text, " 7.") == Aligned(Extracted("7", (9, 10)), in_path=True)
    assert align("it is 1,234", " $1,234.00?") == Aligned(Extracted("$1,234.00", (1, 10)), in_path=False)
    assert align("it is 50 %", " 50 %.") == Aligned(Extracted("50 %", (6, 10)), in_path=True)


def test_without_an_alignment_the_continuation_answers_and_says_so() -> None:
    assert align("seven apples", " 7.") == Aligned(Extracted("7", (1, 2)), in_path=False)


def test_a_continuation_without_an_answer() -> None:
    assert align("it is 7", " \n") is None
