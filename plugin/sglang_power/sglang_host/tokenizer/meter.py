"""Counts the tokens of one request, for whoever has to account for them. Tokenizer process.

Children, samples, and answers of SGLang's own: all of them pass through SGLang's generate_request, and are
counted there, as far as they have come. So nobody needs to know who answered, or how it ended.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from sglang_power.experiments.records import TokenCounts

if TYPE_CHECKING:
    from sglang_power.sglang_host.tokenizer.host import GenerateRequest


class Meter:
    """Tokens of all that was asked of SGLang through `around`.

    Args:
        told: is told of decoded tokens as they are counted.
    """

    def __init__(self, told: Callable[[int], None] | None = None) -> None:
        self._decoded = self._prefilled = 0
        self._told = told

    @property
    def tokens(self) -> TokenCounts:
        """Tokens that were generated, and prompt tokens that the radix cache did not hold."""
        return TokenCounts(decoded=self._decoded, prefilled=self._prefilled)

    def around(self, original: GenerateRequest) -> GenerateRequest:
        """SGLang's generate_request, with what it answers counted."""

        async def counted(*args: Any) -> AsyncIterator[Any]:
            told: dict[int, tuple[int, int]] = {}
            async with aclosing(original(*args)) as responses:
                async for response in responses:
                    for number, answer in enumerate(response if isinstance(response, list) else [response]):
                        index = answer.get("index", number)
                        decoded, prefilled = told.get(index, (0, 0))
                        told[index] = _tokens_of(answer["meta_info"], decoded, prefilled)
                        self._decoded += told[index][0] - decoded
                        self._prefilled += told[index][1] - prefilled
                        if self._told is not None and told[index][0] > decoded:
                            self._told(told[index][0] - decoded)
                    yield response

        return counted


def _tokens_of(meta: Mapping[str, Any], decoded: int, prefilled: int) -> tuple[int, int]:
    """Decoded and prefilled tokens of one answer so far; never fewer than before, aborts tell none."""
    uncached = (meta.get("prompt_tokens") or 0) - (meta.get("cached_tokens") or 0)
    return max(decoded, meta.get("completion_tokens") or 0), max(prefilled, uncached)
