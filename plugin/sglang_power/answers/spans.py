"""Which characters of an answer's text each of its tokens covers.

Owns the way from token ids to characters and back, for any tokenizer that has a decode function. Knows no
tokenizer library and no answer: `extraction` names characters, `Spelled.tokens_of` the tokens under them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Span = tuple[int, int]
"""Characters [start, end) of a text."""

Decode = Callable[[Sequence[int]], str]
"""Token ids -> text; bytes that are no UTF-8 become U+FFFD."""

REPLACEMENT = "\ufffd"

WINDOW = 24
"""Tokens after which the tail begins anew."""

CONTEXT = 4
"""Tokens before the tail that are decoded with it."""


@dataclass(frozen=True, slots=True)
class Spelled:
    """An answer's text, and what each token covers of it.

    Starts and ends never decrease, and the spans that are not empty tile the text: neighbours meet, or share
    the one character that they complete together. A token without text has an empty span.

    Args:
        text: decode(ids).
        offsets: a span per token.
    """

    text: str
    offsets: tuple[Span, ...]

    def tokens_of(self, span: Span) -> tuple[int, ...]:
        """Indices of the tokens that overlap a span by at least one character, ascending.

        Not a range: a special token inside the span covers none of its characters.
        """
        start, end = span
        return tuple(i for i, (s, e) in enumerate(self.offsets) if max(s, start) < min(e, end))


def spelled(decode: Decode, ids: Sequence[int]) -> Spelled:
    """Spell `ids`, by decoding growing prefixes and comparing them with the whole text.

    Token i covers what the first i+1 ids settle and the first i do not. A character is settled when a prefix
    decodes to the text up to it and beyond; while its bytes are incomplete a prefix ends with U+FFFD, and
    every token from its first byte to its last covers it.

    Whole prefixes cost n^2, so a bounded tail is decoded instead: `ids[first : i+1]`, whose first tokens are
    the context. That is the same wherever decode(x) is U(bytes of x), U being UTF-8 decoding with
    replacement, maybe with a blank taken off the front (SentencePiece). Proof: U has no memory at a boundary
    of characters, so for context c that ends there U(x c y) = U(x c) + U(c y) without its beginning U(c); and
    a non-empty text of c shows that the blank came off c alone, in U(c) as in U(c y). Both are checked when
    the tail moves: decode(c) is not empty, is how the settled text ends, and does not end with U+FFFD, which
    may be half a character. Where a check fails the tail grows. Decoders of another kind (which write a token
    by what is far behind it) show themselves by a tail that never settles: then whole prefixes are decoded.

    Args:
        decode: of the tokenizer, with the flags that made the answer's text.
        ids: the answer's tokens.
    """
    text = decode(ids)
    offsets, settled = _walk(decode, ids, text, WINDOW)
    if settled != len(text):
        offsets, _ = _walk(decode, ids, text, len(ids))
    return Spelled(text, tuple(offsets))


def _walk(decode: Decode, ids: Sequence[int], text: str, window: int) -> tuple[list[Span], int]:
    """A span per token, and how much of the text is settled in the end."""
    offsets: list[Span] = []
    first, head, at = 0, "", 0
    settled, before = 0, ""
    for i in range(len(ids)):
        decoded = decode(ids[first : i + 1])
        known = decoded.startswith(head)
        reached = max(settled, at + _common(decoded[len(head) :], text, at)) if known else settled
        pending = not known or at + len(decoded) - len(head) > reached
        offsets.append(_covered(decode, ids[i], text, settled, reached, pending, decoded == before))
        settled, before = reached, decoded
        if i - first >= window and not pending:
            context = decode(ids[i + 1 - CONTEXT : i + 1])
            if _is_boundary(context, text, settled):
                first, head, at, before = i + 1 - CONTEXT, context, settled, context
    return offsets, settled


def _covered(
    decode: Decode, token: int, text: str, settled: int, reached: int, pending: bool, unchanged: bool
) -> Span:
    """What a token covers that takes the settled text from `settled` to `reached`."""
    if unchanged and not decode([token]):
        return settled, settled
    if unchanged and not pending and text.endswith(REPLACEMENT, 0, settled):
        return settled - 1, settled  # one more byte of a sequence that the text shows as one U+FFFD
    return settled, min(reached + pending, len(text))


def _common(tail: str, text: str, at: int) -> int:
    """Length of the longest beginning of `tail` that the text has at `at`."""
    if text.startswith(tail, at):
        return len(tail)
    both = zip(tail, text[at : at + len(tail)], strict=False)
    return next((n for n, (a, b) in enumerate(both) if a != b), min(len(tail), len(text) - at))


def _is_boundary(context: str, text: str, settled: int) -> bool:
    return bool(context) and text.endswith(context, 0, settled) and not context.endswith(REPLACEMENT)
