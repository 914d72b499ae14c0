"""Train the prose model: `python -m integration_tests.prose.train --out integration_tests/prose/model`.

Owns the architecture and the training stream; the loop and the files are `integration_tests.training`. About
twenty CPU minutes on one core.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from integration_tests import training
from integration_tests.prose import tokenizer
from integration_tests.prose.corpus import Document, Split, sample_document
from integration_tests.training import Batch, LabelledTokens, TrainingConfig

__all__ = ["DEFAULT", "build_model", "held_out_loss", "labelled", "sample_batches", "train"]

DEFAULT: Final = TrainingConfig(steps=1900, batch_size=32, micro_batches=8, peak_learning_rate=3e-3)
"""The run that made the committed weights."""


def build_model(seed: int) -> LlamaForCausalLM:
    """Build the untrained model: Llama, 4 layers of width 128, 1.05M parameters, tied embeddings, float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tokenizer.VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=tokenizer.MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.EOS_ID,
        pad_token_id=tokenizer.EOS_ID,
        initializer_range=0.06,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def labelled(built: PreTrainedTokenizerFast, document: Document) -> LabelledTokens:
    """Encode a document piece by piece, all of it to be learned.

    Questions are learned too: foreseeing the second of two answers teaches to look back at the first, which
    replies alone teach too slowly.
    """
    ids = [built.encode(text, add_special_tokens=False) for text in tokenizer.pieces(document)]
    tokens = list(itertools.chain.from_iterable(ids))
    return LabelledTokens(tokens, [True] * len(tokens))


def sample_batches(
    built: PreTrainedTokenizerFast, rng: np.random.Generator, split: Split, size: int, micro_batches: int
) -> Sequence[Batch]:
    """Draw documents of the split as micro-batches of like lengths."""
    texts = [labelled(built, sample_document(rng, split)) for _ in range(size)]
    groups = training.grouped_by_length(texts, micro_batches, lambda text: len(text.tokens))
    return [training.padded(group, tokenizer.EOS_ID) for group in groups]


def held_out_loss(
    model: LlamaForCausalLM, built: PreTrainedTokenizerFast, seed: int, size: int = 512
) -> float:
    """Mean loss over the tokens of held-out documents, in nats."""
    batches = sample_batches(built, np.random.default_rng(seed), "held_out", size, max(1, size // 16))
    return training.mean_loss(model, batches)


def train(model: LlamaForCausalLM, built: PreTrainedTokenizerFast, config: TrainingConfig) -> None:
    """Fit the model to the stream of training documents."""
    training.fit(
        model,
        config,
        lambda rng: sample_batches(built, rng, "train", config.batch_size, config.micro_batches),
    )


def main() -> None:
    """Train, report the held-out loss, save."""
    out, config = training.parsed_arguments("Train the prose model.", DEFAULT)
    torch.set_num_threads(1)
    built, model = tokenizer.build(), build_model(config.seed)
    tqdm.write(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    train(model, built, config)
    training.save(model, built, out)
    tqdm.write(f"held-out loss {held_out_loss(model, built, config.seed):.4f} nats per token")


if __name__ == "__main__":
    main()
