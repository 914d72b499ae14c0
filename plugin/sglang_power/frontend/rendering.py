"""Which text drawn tokens show, and which of the tokens that text holds.

SGLang leaves stops out of a text: a stop token with its id, a stop string by its characters. Owns that rule
for segments that may begin inside a character. Knows neither programs nor what they ask for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sglang_power.errors import HostError
from sglang_power.frontend.client import Client
from sglang_power.frontend.ledger import REPLACEMENT

Reason = Mapping[str, Any]
"""SGLang's finish_reason."""


@dataclass(frozen=True, slots=True)
class Tail:
    """Generated tokens in front of a segment, where they end inside a character; empty where they do not.

    Args:
        ids, text: of those tokens.
        kept: characters of the text that stay; the others the segment shows, complete.
    """

    ids: tuple[int, ...] = ()
    text: str = ""
    kept: int = 0

    @property
    def cut(self) -> str:
        """The characters that do not stay."""
        return self.text[self.kept :]


def text_of(client: Client, tail: Tail, drawn: Sequence[int], reason: Reason | None) -> str:
    """The text that a segment shows.

    Args:
        client: decodes.
        tail: in front of it.
        drawn: its tokens.
        reason: how it ended; None while it goes on.
    """
    matched = _matched(reason)
    ids = drawn[:-1] if isinstance(matched, int) else drawn
    text = client.decode([[*tail.ids, *ids]])[0][tail.kept :]
    if reason is None:
        return text.rstrip(REPLACEMENT)
    at = text.find(matched) if isinstance(matched, str) else -1
    return text if at < 0 else text[:at]


def shown(
    client: Client, tail: Tail, drawn: tuple[int, ...], text: str, reason: Reason
) -> tuple[tuple[int, ...], str]:
    """Of what was drawn, the tokens that the text holds whole, and their text.

    A stop string may end inside a token; the characters in front of it are then constant text. A stop that
    was not cut out of the text is that of a special token, the last one, which has no text; or the pattern
    of a `stop_regex`, whose match stays.

    Args:
        client, tail, drawn, reason: see `text_of`.
        text: what the segment shows.

    Raises:
        HostError: the text is not that of the tokens.
    """
    matched = _matched(reason)
    if isinstance(matched, int):
        return drawn[:-1], text
    if matched is None:
        return drawn, text
    fewest = max(len(drawn) - len(matched.encode()) - 1, 0)
    counts = range(len(drawn), fewest - 1, -1)
    texts = [
        decoded[tail.kept :] for decoded in client.decode([[*tail.ids, *drawn[:count]] for count in counts])
    ]
    if texts[0] == text:
        return (drawn[:-1] if texts[1:2] == [text] else drawn), text
    for count, whole in zip(counts, texts, strict=True):
        if text.startswith(whole):
            return drawn[:count], whole
    raise HostError(f"the text of an answer is not that of its tokens: {text!r}")


def _matched(reason: Reason | None) -> str | int | None:
    return reason.get("matched") if reason is not None and reason["type"] == "stop" else None
