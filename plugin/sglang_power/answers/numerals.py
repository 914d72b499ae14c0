"""Numbers as people and models write them: where they are in a text, and their exact values.

What is read, and as what:

    sign        -5               also U+2212 (minus) and the en dash, right before the number; none behind a
                                 letter, a digit or a closing bracket (10-8, pages 3-5, x-3); no em dash
    point       1.5  .5  1.234   a single point is a decimal point
    thousands   1,234,567.8      also {,} and \\, of LaTeX, and apostrophes (1'234)
                1,00,000         Indian: twos above the last three
                10 000  10 000,5 behind blanks (plain, no-break, narrow, thin, figure), a decimal comma too;
                                 not behind a letter, a point, a comma or a slash
                1.234,5          points, where a decimal comma or a second point (1.234.567) tells them
    exponent    2.5e3  2E-2
    fraction    3/4              also U+2044 (fraction slash), \\frac{3}{4} and U+00BE (three quarters)
    mixed       2 1/2            also 2\\frac{1}{2} and 2 before U+00BD (one half): at most three digits
                                 before a fraction below 1
    percent     50%              also 50\\% and 50 percent; equal to 1/2 and 0.5, not to 50
    currency    $5  -$5          left out
    digits      0 to 9           of any script (full-width, Arabic-Indic, Devanagari, ...), with full-width
                                 marks (point, slash, signs, percent) and Arabic ones (decimal, thousands)

A chain of more than one slash (a date) is read as its last number. Not read as one number: a comma between
digits that groups nothing (0,5 and 3,14 may be two numbers of a list, as 1,2,3 is), powers and superscripts,
number words, per mille. What is written alike is read alike: a list "100 200" or "5 100" is a number here.

Characters are replaced one by one before patterns look at a text, so spans are those of the text as it was.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import regex

MAX_DIGITS = 1000
"""Longer numbers, and exponents beyond this, are not read: their exact values would fill the memory."""

_MARKS = {
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-"),
    **dict.fromkeys("\u2044\u2215\uff0f", "/"),
    **dict.fromkeys("\u066a\ufe6a\uff05", "%"),
    **dict.fromkeys("\u00a0\u2007\u2009\u202f", " "),
    "\uff0b": "+",
    "\uff0e": ".",
    "\u066b": ".",
    "\u066c": ",",
    "\u2019": "'",
    "\uff04": "$",
    "\uffe5": "¥",
    "\uffe1": "£",
}
"""Characters that mean the same in a number as an ASCII one, or as one of `_CURRENCY`."""


class _Plain(dict[int, str]):
    """A table for `str.translate`: decimal digits and `_MARKS` as ASCII, all else as it is."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        digit = unicodedata.decimal(character, None)
        self[code] = _MARKS.get(character, character) if digit is None else str(digit)
        return self[code]


_PLAIN = _Plain()

_CURRENCY = r"\\?[$€£¥₹₩₽₺₪₫₱₿¢]"
_SEPARATOR = r"(?:,|\{,\}|\\,|')"
_VULGAR = "[\u00bc-\u00be\u2150-\u215e\u2189]"

# The standard library has possessive groups wrong before Python 3.11.5 (CPython issue 106052).
# In order: the first that matches is the number. Each tries a run of groups once, from its first digit on:
# behind a digit or a mark of its own it does not begin, and no run is given back.
_BY_POINTS = r"(?<![0-9.,/])[1-9][0-9]{0,2}(?:(?:\.[0-9]{3})++,[0-9]+|(?:\.[0-9]{3}){2,}+)(?![.,]?[0-9])"
_BY_TWOS = (
    r"(?<![0-9.,])[1-9][0-9]?(?:(?:,|\{,\})[0-9]{2}(?![0-9]))++(?:,|\{,\})[0-9]{3}(?![0-9])(?:\.[0-9]+)?"
)
_BY_BLANKS = r"(?<![\w.,/])[1-9][0-9]{0,2}(?: [0-9]{3}(?![0-9]))++(?:[.,][0-9]+)?"
_BY_SEPARATORS = rf"[1-9][0-9]{{0,2}}(?:{_SEPARATOR}[0-9]{{3}})+(?![0-9])(?:\.[0-9]+)?"
_UNGROUPED = r"[0-9]+(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+"
_DECIMAL = rf"(?:(?:{_BY_POINTS}|{_BY_TWOS}|{_BY_BLANKS}|{_BY_SEPARATORS}|{_UNGROUPED})(?:[eE][+-]?[0-9]+)?)"

_WHOLE_PART = (
    rf"(?<![0-9.,/])(?P<whole>[0-9]{{1,3}})"
    rf"(?: ?(?=\\[dt]?frac)|(?={_VULGAR})| (?=[0-9]{{1,3}}/[0-9]{{1,3}}(?![0-9/.,])))"
)
_NUMERAL = (
    rf"(?:(?P<sign>(?<![\w)\]}}%])[-+])(?:{_CURRENCY}\s?)?)?"
    rf"(?:{_WHOLE_PART})?"
    rf"(?P<rest>\\[dt]?frac\s*\{{\s*(?P<over>{_DECIMAL})\s*\}}\s*\{{\s*(?P<under>{_DECIMAL})\s*\}}"
    rf"|(?P<vulgar>{_VULGAR})|(?P<chain>{_DECIMAL}(?:\s?/\s?{_DECIMAL})*))"
    r"(?P<percent>\s?(?:\\?%|per ?cent\b))?"
)
_ANYWHERE = regex.compile(_NUMERAL)
_WHOLE = regex.compile(rf"(?:{_CURRENCY}\s*+)?{_NUMERAL}(?:\s*{_CURRENCY})?(?:\s*\.)?")
_SLASH = regex.compile(r"\s?/\s?")
_POINTS = regex.compile(_BY_POINTS)
_GROUPING = regex.compile(rf"{_SEPARATOR}| ")


@dataclass(frozen=True, slots=True)
class Numeral:
    """A number in a text.

    Args:
        text: normal form within its notation: no plus sign, no separators, no needless zeros, fractions in
            lowest terms, percents with their sign ("-1234.5", "3/4", "50%").
        value: the exact value, percents divided by 100.
        span: its characters: sign to percent sign, currency signs only where they are inside.
    """

    text: str
    value: Fraction
    span: tuple[int, int]


def numerals(text: str) -> Iterator[Numeral]:
    """Every number of a text, from the last to the first; unreadable ones (3/0, 1e99999) are left out."""
    for match in reversed(list(_ANYWHERE.finditer(text.translate(_PLAIN)))):
        if (found := _numeral(match)) is not None:
            yield found


def read_number(text: str) -> Fraction | None:
    """The exact value of a text that is one number, blanks, currency signs and a full stop aside."""
    match = _WHOLE.fullmatch(text.translate(_PLAIN).strip())
    if match is None or (match["chain"] or "").count("/") > 1:
        return None
    found = _numeral(match)
    two = match["whole"] is not None and found is not None and found.span[0] == match.start("rest")
    return None if found is None or two else found.value


def _numeral(match: regex.Match[str]) -> Numeral | None:
    sign, (start, end) = match["sign"], match.span()
    parts = _parts(match)
    if len(parts) > 2:
        sign, start, parts = None, match.end("chain") - len(parts[-1]), parts[-1:]
    read = _decimal(parts[0])
    under = _decimal(parts[1]) if len(parts) > 1 else Decimal(1)
    if read is None or under is None or not under:
        return None
    value = Fraction(read) / Fraction(under)
    if match["whole"] is not None:
        if value < 1:
            value += int(match["whole"])
        else:  # two numbers, of which the last one counts
            sign, start = None, match.start("rest")
    shown = str(value) if len(parts) > 1 else _plain(read)
    if sign == "-" and value:
        value, shown = -value, f"-{shown}"
    if match["percent"] is None:
        return Numeral(shown, value, (start, end))
    return Numeral(f"{shown}%", value / 100, (start, end))


def _parts(match: regex.Match[str]) -> list[str]:
    """The number, or what stands over and under a fraction's bar; more of a chain with several slashes."""
    if match["over"] is not None:
        return [match["over"], match["under"]]
    if match["vulgar"] is not None:
        return unicodedata.normalize("NFKC", match["vulgar"]).split("\N{FRACTION SLASH}")
    parts: list[str] = _SLASH.split(match["chain"])
    return parts


def _decimal(part: str) -> Decimal | None:
    digits = _GROUPING.sub("", part)
    if _POINTS.match(part):
        digits = part.replace(".", "").replace(",", ".")
    elif " " in part:
        digits = part.replace(" ", "").replace(",", ".")
    mantissa, _, exponent = digits.lower().partition("e")
    if len(mantissa) > MAX_DIGITS or len(exponent) > 6 or abs(int(exponent or 0)) > MAX_DIGITS:
        return None
    return Decimal(digits)


def _plain(number: Decimal) -> str:
    """Exact digits without exponent; `Decimal.normalize` would round."""
    shown = format(number, "f")
    whole, point, rest = shown.partition(".")
    rest = rest.rstrip("0")
    return (whole.lstrip("0") or "0") + (point + rest if rest else "")
