"""Numbers as people and models write them: where they are in a text, and their exact values.

Read: signs (ASCII and U+2212), decimals, thousands separators (comma, LaTeX's `{,}` and `\\,`, no-break and
thin spaces), exponents (2.5e3), fractions (3/4, \\frac{3}{4}), currency signs and percent signs. A hyphen
behind a letter, digit or closing bracket is no sign (10-8, x-3). A chain of more than one slash (a date) is
read as its last number. Not read: mixed numbers, powers, number words; a point is always a decimal point.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

MAX_DIGITS = 1000
"""Longer numbers, and exponents beyond this, are not read: their exact values would fill the memory."""

_CURRENCY = r"\\?[$€£¥₹₩₽₺₪₫₱₿¢]"
_SEPARATOR = r"(?:,|\{,\}|\\,|[\u00a0\u2009\u202f])"
_DECIMAL = (
    rf"(?:(?:[0-9]{{1,3}}(?:{_SEPARATOR}[0-9]{{3}})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+)"
    r"(?:[eE][+-]?[0-9]+)?"
)
_NUMERAL = (
    rf"(?:(?P<sign>(?<![\w)\]}}%])[-+\u2212])(?:{_CURRENCY}\s?)?)?"
    rf"(?:\\[dt]?frac\s*\{{\s*(?P<over>{_DECIMAL})\s*\}}\s*\{{\s*(?P<under>{_DECIMAL})\s*\}}"
    rf"|(?P<chain>{_DECIMAL}(?:\s?/\s?{_DECIMAL})*))"
    r"(?P<percent>\s?\\?%)?"
)
_ANYWHERE = re.compile(_NUMERAL)
_WHOLE = re.compile(rf"(?:{_CURRENCY}\s*+)?{_NUMERAL}(?:\s*{_CURRENCY})?(?:\s*\.)?")
_SEPARATORS = re.compile(_SEPARATOR)


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
    for match in reversed(list(_ANYWHERE.finditer(text))):
        if (found := _numeral(match)) is not None:
            yield found


def read_number(text: str) -> Fraction | None:
    """The exact value of a text that is one number, blanks, currency signs and a full stop aside."""
    match = _WHOLE.fullmatch(text.strip())
    if match is None or (match["chain"] or "").count("/") > 1:
        return None
    found = _numeral(match)
    return None if found is None else found.value


def _numeral(match: re.Match[str]) -> Numeral | None:
    sign, (start, end) = match["sign"], match.span()
    if match["over"] is not None:
        parts = [match["over"], match["under"]]
    else:
        parts = re.split(r"\s?/\s?", match["chain"])
    if len(parts) > 2:
        sign, start, parts = None, match.end("chain") - len(parts[-1]), parts[-1:]
    read = _decimal(parts[0])
    under = _decimal(parts[1]) if len(parts) > 1 else Decimal(1)
    if read is None or under is None or not under:
        return None
    value = Fraction(read) / Fraction(under)
    shown = str(value) if len(parts) > 1 else _plain(read)
    if sign in ("-", "\u2212") and value:
        value, shown = -value, f"-{shown}"
    if match["percent"] is None:
        return Numeral(shown, value, (start, end))
    return Numeral(f"{shown}%", value / 100, (start, end))


def _decimal(part: str) -> Decimal | None:
    digits = _SEPARATORS.sub("", part)
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
