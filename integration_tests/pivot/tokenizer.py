"""The character tokenizer of the pivot model: Qwen2's own tokenizer class with bytes only and no merges.

Owns the vocabulary and the chat template. One ASCII character is one token and decoding is plain
concatenation, so texts, tokens and cut positions coincide. Nothing is put before or after a prompt, and the
chat template is the identity on contents: chat and completion endpoints see the same prompt.

Why bytes: transformers 5 loads every `qwen2` checkpoint as `Qwen2Tokenizer`, whatever class the folder
names, and that class rebuilds a byte-level BPE from the vocabulary alone; characters outside it would
vanish from the prompt without a word. With all 256 bytes nothing is unknown: other characters become
several tokens, losslessly.
"""

from __future__ import annotations

from typing import Final

from tokenizers import pre_tokenizers
from transformers import Qwen2Tokenizer

__all__ = [
    "BYTE_OFFSET",
    "CHAT_TEMPLATE",
    "EOS_ID",
    "EOS_TOKEN",
    "MAX_LENGTH",
    "UNK_TOKEN",
    "VOCAB_SIZE",
    "build",
    "encode",
]

EOS_TOKEN: Final = "<eos>"
UNK_TOKEN: Final = "<unk>"
"""Required by the class; no text maps to it."""

EOS_ID: Final = 0
BYTE_OFFSET: Final = 2
"""The token of byte `b` is `b + BYTE_OFFSET`."""

VOCAB_SIZE: Final = BYTE_OFFSET + 256
MAX_LENGTH: Final = 256

CHAT_TEMPLATE: Final = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""Contents only: no roles, no separators, and nothing for the generation prompt."""


def _byte_names() -> list[str]:
    """List the visible stand-ins of the 256 bytes that byte-level BPE files use, in byte order."""
    shifted = iter(range(256, 512))
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    return [chr(b) if chr(b) in alphabet else chr(next(shifted)) for b in range(256)]


def build() -> Qwen2Tokenizer:
    """Build the tokenizer; `build().save_pretrained(folder)` writes its files and the chat template."""
    return Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate((EOS_TOKEN, UNK_TOKEN, *_byte_names()))},
        merges=[],
        eos_token=EOS_TOKEN,
        pad_token=EOS_TOKEN,
        unk_token=UNK_TOKEN,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_LENGTH,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def encode(text: str) -> list[int]:
    """Encode without the tokenizer, for the training stream; equal to `build()(text)["input_ids"]`."""
    return [byte + BYTE_OFFSET for byte in text.encode()]
