"""A tokenizer of single letters."""

from __future__ import annotations

from typing import Any


class Letters:
    """A tokenizer with one token per letter; token 0 ends."""

    eos_token_id = 0

    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(letter) - 96 for letter in text]

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join("" if i == 0 else chr(96 + i) for i in ids)
