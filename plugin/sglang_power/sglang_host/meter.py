"""Counts the tokens of one request's children, for whoever has to account for them. Tokenizer process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sglang_power.experiments.records import Tokens

_METER = "_sglang_power_meter"


class Meter:
    """Tokens of the children that have ended.

    Attributes:
        children: how many.
        decoded: tokens that they generated.
        prefilled: prompt tokens that the radix cache did not hold.
    """

    def __init__(self) -> None:
        self.children = self.decoded = self.prefilled = 0

    def count(self, meta: Mapping[str, Any]) -> None:
        """Count one child by its meta_info."""
        self.children += 1
        self.decoded += meta.get("completion_tokens") or 0
        self.prefilled += max(0, (meta.get("prompt_tokens") or 0) - (meta.get("cached_tokens") or 0))

    def tokens(self, answers: Sequence[Mapping[str, Any]]) -> Tokens:
        """Of all children where there were any; else what SGLang says of its own answers."""
        if not self.children:
            for answer in answers:
                self.count(answer["meta_info"])
        return Tokens(decoded=self.decoded, prefilled=self.prefilled)


@contextmanager
def metered(obj: Any, meter: Meter) -> Iterator[None]:
    """Count the children of a request within a with-block."""
    setattr(obj, _METER, meter)
    try:
        yield
    finally:
        delattr(obj, _METER)


def meter_of(obj: Any) -> Meter | None:
    """The meter of a request, if anybody set one."""
    meter: Meter | None = getattr(obj, _METER, None)
    return meter
