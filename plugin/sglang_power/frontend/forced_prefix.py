"""Tokens that a branch begins with, as the generation behind them has to see them.

The server takes a forced prefix for prompt, so nothing that a generation asks for acts on it. Its limit and
its stops are applied here, by SGLang's rule; what would have shaped the tokens is refused. Knows no program.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sglang_power.errors import UnsupportedError
from sglang_power.frontend.client import Client
from sglang_power.frontend.ledger import REPLACEMENT, DrawnText
from sglang_power.frontend.rendering import Reason

SHAPING: dict[str, tuple[object, ...]] = {
    "dtype": (None,),
    "regex": (None,),
    "json_schema": (None,),
    "stop_regex": (None, "", (), []),
    "min_new_tokens": (0,),
    "ignore_eos": (False,),
    "frequency_penalty": (0.0,),
    "presence_penalty": (0.0,),
}
"""Settings that tokens depend on one by one, and the values that leave them alone."""


@dataclass(frozen=True, slots=True)
class End:
    """Tokens that are a whole segment: all that was drawn, the stop included, and why it ends there."""

    drawn: tuple[int, ...]
    reason: Reason


def end_of(client: Client, prefix: DrawnText, settings: Any) -> End | None:
    """Where a segment ends inside of its prefix; None where it goes on behind it.

    Args:
        client: decodes.
        prefix: what the segment begins with.
        settings: SGLang's sampling parameters of the segment.

    Raises:
        UnsupportedError: the settings shape tokens, and those of the prefix have not seen them.
    """
    for name, neutral in SHAPING.items():
        if (value := getattr(settings, name)) not in neutral:
            problem = "the first tokens of this branch were drawn without it"
            raise UnsupportedError(name, value, problem, "Leave it out, or branch by n or names")
    drawn = prefix.ids[: settings.max_new_tokens]
    if (end := first_stop(client, drawn, stop_strings(settings), settings.stop_token_ids or ())) is not None:
        return end
    if prefix.reason is not None and drawn == prefix.ids:
        return End(drawn, prefix.reason)
    if len(drawn) == settings.max_new_tokens:
        return End(drawn, {"type": "length", "length": len(drawn)})
    return None


def first_stop(
    client: Client, ids: tuple[int, ...], strings: Sequence[str], tokens: Collection[int] = ()
) -> End | None:
    """The first token that is a stop, or with which the text holds a stop string; special tokens count.

    A string goes before a token that is the same place, as in SGLang.
    """

    def string_in(count: int) -> str | None:
        text = client.decode([ids[:count]], special=True)[0] if strings else ""
        return next((stop for stop in strings if stop in text), None)

    length = next((count for count, token in enumerate(ids, 1) if token in tokens), len(ids))
    if string_in(length) is not None:
        counts = range(1, length + 1)
        count = counts[bisect_left(counts, True, key=lambda count: string_in(count) is not None)]
        return End(ids[:count], {"type": "stop", "matched": string_in(count)})
    if ids and ids[length - 1] in tokens:
        return End(ids[:length], {"type": "stop", "matched": ids[length - 1]})
    return None


def may_stop_behind(text: str, settings: Any) -> bool:
    """Whether a stop string may begin in a prefix's text and end in what follows, where no server sees it."""
    whole = text.rstrip(REPLACEMENT)
    fewest = 1 if whole == text else 0
    begun = [stop[:length] for stop in stop_strings(settings) for length in range(fewest, len(stop))]
    return whole.endswith(tuple(begun))


def stop_strings(settings: Any) -> list[str]:
    """The stop strings of SGLang's sampling parameters."""
    stop = settings.stop or ()
    return [stop] if isinstance(stop, str) else [string for string in stop if string]
