"""Which characters are the answer: hand-made rows of every extractor, and the last occurrence counts.

Deterministic. Error rate 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang_power import answers
from sglang_power.answers import EXTRACTORS, Extracted, Regex, TimedOut, numerals, value_of
from sglang_power.answers.extraction import Boxed, Number, OptionLetter, Whole
from sglang_power.answers.numerals import MAX_DIGITS, read_number
from sglang_power.errors import RequestError

quick = settings(derandomize=True, database=None, deadline=None)

NUMBERS = [
    ("The answer is 42.", "42", "42"),
    ("It costs $1,234.50.", "1234.5", "1,234.50"),
    ("b7+3=0;0*2=0;A2.", "2", "2"),
    ("first 3, then 5km", "5", "5"),
    ("= -5", "-5", "-5"),
    ("= \u22127 degrees", "-7", "\u22127"),
    ("+3", "3", "+3"),
    ("10-8", "8", "8"),
    ("x-3", "3", "3"),
    ("(x+1)-3", "3", "3"),
    ("pages 3\u20135", "5", "5"),
    ("-$3", "-3", "-$3"),
    ("$-5$", "-5", "-5"),
    ("$10-$20", "20", "20"),
    ("\\$12.00", "12", "12.00"),
    ("50%", "50%", "50%"),
    ("0.10 %", "0.1%", "0.10 %"),
    ("50\\%.", "50%", "50\\%"),
    ("3/4 cup", "3/4", "3/4"),
    ("-6 / 8", "-3/4", "-6 / 8"),
    ("4/2", "2", "4/2"),
    ("1.5/3", "1/2", "1.5/3"),
    ("on 12/25/2024", "2024", "2024"),
    ("\\frac{3}{4}$", "3/4", "\\frac{3}{4}"),
    ("-\\dfrac{ 6 }{8}", "-3/4", "-\\dfrac{ 6 }{8}"),
    ("is .5", "0.5", ".5"),
    ("v1.2.3", "3", "3"),
    ("1.5e3", "1500", "1.5e3"),
    ("2E-2", "0.02", "2E-2"),
    ("1.234,5e1", "12345", "1.234,5e1"),
    ("10 000e2", "1000000", "10 000e2"),
    ("1{,}234", "1234", "1{,}234"),
    ("10\\,000", "10000", "10\\,000"),
    ("10\u202f000", "10000", "10\u202f000"),
    ("1,2,3", "3", "3"),
    ("1234,567", "567", "567"),
    ("-0", "0", "-0"),
    ("007", "7", "007"),
    ("100.", "100", "100"),
]


WRITTEN = [
    # signs
    ("= \u20137 degrees", "-7", "\u20137"),
    ("= \uff0d7", "-7", "\uff0d7"),
    ("from 3 \u2013 5", "5", "5"),
    ("(3)\u20135", "5", "5"),
    ("so\u20147", "7", "7"),
    ("1.5e\u22123", "0.0015", "1.5e\u22123"),
    # groups
    ("1,00,000 rupees", "100000", "1,00,000"),
    ("12,34,567.50", "1234567.5", "12,34,567.50"),
    ("1{,}00{,}000", "100000", "1{,}00{,}000"),
    ("10 000", "10000", "10 000"),
    ("10\u00a0000", "10000", "10\u00a0000"),
    ("1\u202f234\u202f567,8 km", "1234567.8", "1\u202f234\u202f567,8"),
    ("-$12 345.60", "-12345.6", "-$12 345.60"),
    ("1'234'567", "1234567", "1'234'567"),
    ("1\u2019234", "1234", "1\u2019234"),
    ("1.234,5", "1234.5", "1.234,5"),
    ("1.234.567,89 \u20ac", "1234567.89", "1.234.567,89"),
    ("1.234.567", "1234567", "1.234.567"),
    # what groups nothing
    ("1.234", "1.234", "1.234"),
    ("0,5", "5", "5"),
    ("3,14", "14", "14"),
    ("1,00,00", "0", "00"),
    ("1.234,5.678", "5.678", "5.678"),
    ("in 2020 100 left", "100", "100"),
    ("10 0000", "0", "0000"),
    ("x1 000", "0", "000"),
    ("0.5 100", "100", "100"),
    ("10 000 000, 5", "5", "5"),
    ("12,\n345", "345", "345"),
    ("1 234\n567", "567", "567"),
    # digits
    ("\uff13\uff14\uff0e\uff15", "34.5", "\uff13\uff14\uff0e\uff15"),
    ("\uff0d\uff15\uff05", "-5%", "\uff0d\uff15\uff05"),
    ("\u0663\u0664\u066b\u0665", "34.5", "\u0663\u0664\u066b\u0665"),
    ("\u0661\u066c\u0662\u0663\u0664", "1234", "\u0661\u066c\u0662\u0663\u0664"),
    ("\u06f3\u06f4 \u066a", "34%", "\u06f3\u06f4 \u066a"),
    ("\u0969/\u096a", "3/4", "\u0969/\u096a"),
    ("x is 10\u00b2", "10", "10"),
    # fractions
    ("3\u20444 cup", "3/4", "3\u20444"),
    ("\u00bd", "1/2", "\u00bd"),
    ("-2\u00bd", "-5/2", "-2\u00bd"),
    ("takes 2 1/2 cups", "5/2", "2 1/2"),
    ("-2 1/2", "-5/2", "-2 1/2"),
    ("2\\frac{1}{2}", "5/2", "2\\frac{1}{2}"),
    ("2 \\dfrac{3}{4}$", "11/4", "2 \\dfrac{3}{4}"),
    ("of 5 7/2", "7/2", "7/2"),
    ("on 5 12/25/2024", "2024", "2024"),
    ("in 1999 1/2", "1/2", "1/2"),
    # percentages
    ("50 percent", "50%", "50 percent"),
    ("2.5 per cent.", "2.5%", "2.5 per cent"),
    ("1/2 %", "1/2%", "1/2 %"),
    ("5 percentage points", "5", "5"),
]


@pytest.mark.parametrize(("text", "value", "characters"), NUMBERS + WRITTEN)
def test_numbers(text: str, value: str, characters: str) -> None:
    found = Number().extract(text)
    assert found is not None
    assert (found.value, text[slice(*found.span)]) == (value, characters)


@pytest.mark.parametrize(
    "text", ["", "no number", "3/0", "1e99999", "\u00b2", "five", "\u2167", "9" * (MAX_DIGITS + 1)]
)
def test_no_number(text: str) -> None:
    assert Number().extract(text) is None


def test_an_unreadable_number_does_not_hide_an_earlier_one() -> None:
    assert Number().extract("4 and 3/0") == Extracted("4", (0, 1))


def test_the_largest_numbers_are_exact() -> None:
    digits = "1" + "0" * (MAX_DIGITS - 2) + "1"
    assert value_of(Number().extract(digits)) == digits
    assert read_number(f"1e{MAX_DIGITS}") == 10**MAX_DIGITS


@given(st.text("0123456789 ,.'/-%e\u2013\u202f\u00bd\u0663$x", max_size=30))
@quick
def test_spans_hold_their_number_and_nothing_else(text: str) -> None:
    """What the span of a found number holds is read as that number, wherever it stands."""
    found = Number().extract(text)
    if found is None:
        return
    characters = text[slice(*found.span)]
    assert characters == characters.strip()
    assert value_of(Number().extract(f"so: {characters}")) == found.value


@pytest.mark.parametrize(
    ("write", "places"),
    [
        (lambda value: f"{value:,f}".replace(",", " "), 2),
        (lambda value: f"{value:,f}".replace(",", "\u202f"), 4),
        (lambda value: f"{value:,f}".replace(",", "_").replace(".", ",").replace("_", "."), 2),
        (lambda value: f"{value:,f}".replace("-", "\u2013"), 3),
        (lambda value: f"{value:,f}".translate({48 + d: 0x660 + d for d in range(10)}), 3),
        (lambda value: f"{value:,f}".translate({48 + d: 0xFF10 + d for d in range(10)}), 3),
    ],
    ids=["blanks", "narrow blanks", "points and comma", "en dash", "Arabic-Indic", "full-width"],
)
@given(number=st.integers(10**6, 10**12), negative=st.booleans())
@quick
def test_what_other_countries_write_is_read_back(
    write: Callable[[Decimal], str], places: int, number: int, negative: bool
) -> None:
    value = Decimal(-number if negative else number).scaleb(-places)
    written = write(value)
    found = Number().extract(f"= {written} in all")
    assert found is not None
    assert Fraction(found.value) == Fraction(value) == read_number(written)
    assert found.span == (2, 2 + len(written))


@given(st.fractions(min_value=-(10**6), max_value=10**6, max_denominator=10**4))
@quick
def test_fractions_are_read_back(value: Fraction) -> None:
    assert read_number(str(value)) == value
    assert value_of(Number().extract(f"so it is {value}.")) == str(value)


@given(st.decimals(min_value=-(10**9), max_value=10**9, places=4))
@quick
def test_decimals_are_read_back_with_and_without_separators(value: object) -> None:
    for written in (f"{value:f}", f"{value:,f}"):
        found = Number().extract(f"= {written} dollars")
        assert found is not None
        assert Fraction(found.value) == Fraction(str(value)) == read_number(written)


CHOICES = [
    ("(B)", 1),
    ("B.", 0),
    ("B) because", 0),
    ("answer is B", 10),
    ("The answer is: **B**", 17),
    ("Answer: B", 8),
    ("option B, because", 7),
    ("\\boxed{B}", 7),
    ("\\boxed{\\text{(B)}}", 14),
    ("B", 0),
    ("**B**", 2),
    ("A. yes\nB", 7),
    ("(A) or (B)", 8),
    ("The answer is (A). No, B) it is", 23),
    ("the answer is\nB", 14),
]


@pytest.mark.parametrize(("text", "at"), CHOICES)
def test_choices(text: str, at: int) -> None:
    assert OptionLetter().extract(text) == Extracted("B", (at, at + 1))


@pytest.mark.parametrize(
    "text", ["", "a (b)", "Plan B is", "answer is Beta", "the U.S. law", "I'm sure", "answer isn't A"]
)
def test_no_choice(text: str) -> None:
    assert OptionLetter().extract(text) is None


def test_only_the_options_that_there_are_count() -> None:
    text = "(C) as Dr. J. Smith says"
    assert value_of(OptionLetter().extract(text)) == "J"
    assert OptionLetter("ABCD").extract(text) == Extracted("C", (1, 2))


BOXES = [
    ("\\boxed{4}", "4"),
    ("\\boxed{1} and \\boxed{ x+1 }", "x+1"),
    ("\\boxed{\\frac{1}{2}}$", "\\frac{1}{2}"),
    ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"),
    ("\\boxed{ \\} }", "\\}"),
    ("\\boxed{a\\\\}", "a\\\\"),
    ("\\boxed {a\nb}", "a\nb"),
    ("\\boxed{\\boxed{3}}", "3"),
]


@pytest.mark.parametrize(("text", "inside"), BOXES)
def test_boxes(text: str, inside: str) -> None:
    found = Boxed().extract(text)
    assert found is not None
    assert found.value == inside == text[slice(*found.span)]


@pytest.mark.parametrize("text", ["", "4", "\\boxed{4", "\\boxed{1} \\boxed{2", "\\boxed{\\}", "\\boxed{ }"])
def test_no_box(text: str) -> None:
    assert Boxed().extract(text) is None


def test_the_whole_text() -> None:
    assert Whole().extract(" a b\n") == Extracted("a b", (1, 4))
    assert Whole().extract(" \n") is None


ANSWERS = {"number": ("{}; so 17", "17"), "choice": ("{} (D)", "D"), "boxed": ("{}\\boxed{{z}}", "z")}


@given(st.sampled_from(sorted(ANSWERS)), st.text(alphabet="aB(4) .,/-%$\\boxed{}\n", max_size=40))
@quick
def test_what_comes_last_counts_and_spans_are_inside(name: str, before: str) -> None:
    extractor = EXTRACTORS[name]
    earlier = extractor.extract(before)
    assert earlier is None or isinstance(earlier, Extracted)
    if earlier:
        assert 0 <= earlier.span[0] < earlier.span[1] <= len(before)
    form, answer = ANSWERS[name]
    text = form.format(before)
    found = extractor.extract(text)
    assert isinstance(found, Extracted)
    assert (found.value, found.span[1] > len(before)) == (answer, True)


# --- patterns -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        ("a.", "ab ac", Extracted("ac", (3, 5))),
        ("x=(\\d+)", "x=1 x=23", Extracted("23", (6, 8))),
        ("x(y)?", "xy x", Extracted("y", (1, 2))),
        ("(?:a|b)+", "ab c", Extracted("ab", (0, 2))),
        ("\\d*", "12 x", Extracted("12", (0, 2))),
        ("(?i)ANSWER: (?P<it>\\w+)", "answer: yes", Extracted("yes", (8, 11))),
        ("z", "abc", None),
        ("\\d{4}-\\d{2}-\\d{2}", "on 2024-12-25", Extracted("2024-12-25", (3, 13))),
    ],
)
def test_the_last_match_that_is_not_empty(pattern: str, text: str, found: Extracted | None) -> None:
    assert Regex.of(pattern).extract(text) == found


@pytest.mark.parametrize(
    "pattern", ["(", "[", "a**", "\\p{Foo}", "(?P<x>a)(?P<x", "(?:" * 300 + "a" + ")+" * 300]
)
def test_a_pattern_that_does_not_compile_names_the_field(pattern: str) -> None:
    with pytest.raises(RequestError) as caught:
        Regex.of(pattern, "answer_regex")
    assert caught.value.field == "answer_regex"


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("(a)(b)", "2 groups"),
        ("a" * 1001, "longer than 1000"),
        ("(?:(?:(?:a{1000}){1000}){1000}){1000}", "repeats"),
        ("a{0000001000000}", "repeats"),
        ("\\\\{100000}", "repeats"),
        ("(?x)a{10 000#\n0}", "verbose"),
        ("(?i-s:a)(?sx:b)", "verbose"),
        ("(a(?1)?b)", "recursion"),
        ("\\\\(?R)", "recursion"),
        ("(?P<n>a(?&n)?)", "recursion"),
    ],
)
def test_patterns_beyond_the_limits_are_refused_before_they_are_compiled(pattern: str, problem: str) -> None:
    with pytest.raises(RequestError, match=problem):
        Regex.of(pattern)


def test_escaped_braces_and_brackets_are_no_repeats() -> None:
    assert value_of(Regex.of("\\{1000000\\} \\(?1\\)?").extract("{1000000} (1)")) == "{1000000} (1)"


@pytest.mark.parametrize("pattern", ["(a+)+$", "^(?:a|a)*$", "(a|aa)+$"])
def test_catastrophic_backtracking_ends_and_says_so(pattern: str) -> None:
    extractor = Regex.of(pattern)
    assert extractor.extract("a" * 100_000 + "b") == TimedOut(extractor.seconds)
    assert value_of(TimedOut(1.0)) is None
    assert value_of(extractor.extract("aaa")) in ("aaa", "a", "aa"), "other answers are not lost"


def test_possessive_groups_are_left_to_a_library_that_has_them_right() -> None:
    """Python 3.11.0 to 3.11.4 read "1,00,000" as 0 with the standard library's (CPython issue 106052)."""
    possessive = re.compile(r"\)(?:[*+?]|\{[0-9,]*\})\+")
    for path in Path(answers.__file__).parent.glob("*.py"):
        text = path.read_text()
        assert not possessive.search(text) or "\nimport re\n" not in text, path
    assert possessive.search(Path(numerals.__file__).read_text())
