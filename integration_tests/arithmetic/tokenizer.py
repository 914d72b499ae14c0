"""The character tokenizer of the arithmetic model: single bytes, and a chat template that adds nothing.

One ASCII character is one token, so texts, tokens and cut positions coincide; every other character becomes
several tokens, losslessly. Chat and completion endpoints see the same prompt.
"""

from __future__ import annotations

from typing import Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

__all__ = ["CHAT_TEMPLATE", "EOS_ID", "EOS_TOKEN", "MAX_LENGTH", "VOCAB_SIZE", "build"]

EOS_TOKEN: Final = "<eos>"
EOS_ID: Final = 0
VOCAB_SIZE: Final = 257
"""The end token and the 256 bytes."""

MAX_LENGTH: Final = 256

CHAT_TEMPLATE: Final = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""Contents only: no roles, no separators, and nothing for the generation prompt."""


def build() -> PreTrainedTokenizerFast:
    """Build the tokenizer; `build().save_pretrained(folder)` writes its files and the chat template."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate((EOS_TOKEN, *letters))}
    spelled = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    spelled.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelled.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=spelled,
        eos_token=EOS_TOKEN,
        pad_token=EOS_TOKEN,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_LENGTH,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )
