"""The tokenizer of the prose model: byte-level BPE, trained on the model's own texts, and a chat template.

Owns the vocabulary, the turn markers and the template. Texts are split by GPT-2's rule and spelled in bytes,
so every UTF-8 string is encodable and comes back unchanged, normalised or not.

Why the generic class: transformers 5 loads every `qwen2` checkpoint as `Qwen2Tokenizer`, which brings text
into normal form C whatever the folder says. For a `llama` checkpoint it loads tokenizer.json as it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from integration_tests.prose.corpus import Document, contents, sample_document

__all__ = [
    "CHAT_TEMPLATE",
    "EOS_ID",
    "EOS_TOKEN",
    "MAX_LENGTH",
    "START_TOKEN",
    "VOCAB_SIZE",
    "build",
    "opening",
    "pieces",
]

EOS_TOKEN: Final = "<|im_end|>"
"""Ends a turn, and a text that is no chat."""

START_TOKEN: Final = "<|im_start|>"
EOS_ID: Final = 0
VOCAB_SIZE: Final = 2048
MAX_LENGTH: Final = 4096

_TRAINING_DOCUMENTS: Final = 20_000
_MIN_FREQUENCY: Final = 8
"""Of a pair that is merged: most signs and pictures of `lexicon` fall below, and stay in pieces."""

_SEED: Final = 1

CHAT_TEMPLATE: Final = """\
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('the roles are system, user and assistant, not ' + message['role']) -}}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def build() -> PreTrainedTokenizerFast:
    """Train the tokenizer; `build().save_pretrained(folder)` writes its files and the chat template."""
    rng = np.random.default_rng(_SEED)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(  # type: ignore[no-untyped-call]  # its stub lacks a return type
        vocab_size=VOCAB_SIZE,
        min_frequency=_MIN_FREQUENCY,
        special_tokens=[EOS_TOKEN, START_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    documents = (sample_document(rng, "train") for _ in range(_TRAINING_DOCUMENTS))
    bpe.train_from_iterator((text for document in documents for text in contents(document)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=EOS_TOKEN,
        pad_token=EOS_TOKEN,
        additional_special_tokens=[START_TOKEN],
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_LENGTH,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def opening(role: str) -> str:
    """The marker before what a role says."""
    return f"{START_TOKEN}{role}\n"


def pieces(document: Document) -> Sequence[str]:
    """Write the document as the model reads it, cut where a prompt ends and a reply begins.

    Replies are tokenized apart from their prompts when they are generated, and so they are for training.
    """
    if isinstance(document, str):
        return [document + EOS_TOKEN]
    return [piece for turn in document for piece in (opening(turn.role), f"{turn.content}{EOS_TOKEN}\n")]
