"""Train the pivot model: `python -m integration_tests.pivot.train --out integration_tests/pivot/model`.

Owns the architecture and the training stream; the loop and the files are `integration_tests.training`. About
15 CPU minutes on one core.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm
from transformers import Qwen2Config, Qwen2ForCausalLM

from integration_tests import training
from integration_tests.pivot import tokenizer
from integration_tests.pivot.problems import CHOICES, FAMILIES, mixed_completion, sample_problem, sample_text
from integration_tests.training import Batch, LabelledTokens, TrainingConfig

__all__ = [
    "Example",
    "TrainingConfig",
    "build_model",
    "collate",
    "held_out_loss",
    "micro_batches",
    "sample_examples",
    "train",
]


class Example(NamedTuple):
    """One text, and whether it is practice: work in an unusual mix, whose mix must not be learned."""

    text: str
    practice: bool


def build_model(seed: int) -> Qwen2ForCausalLM:
    """Build the untrained model: Qwen2, 4 layers of width 128, 0.8M parameters, tied embeddings, float32."""
    torch.manual_seed(seed)
    config = Qwen2Config(
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
        dtype="float32",
    )
    return Qwen2ForCausalLM(config)


def sample_examples(rng: np.random.Generator, size: int) -> list[Example]:
    """Draw `size` training texts, half of each family; every other R text is practice.

    The law of the texts seldom works four steps in a row, which is just what power sampling asks of the
    model. Practice teaches to work after any history, while the law of the choices is learned from the
    other texts.
    """
    return [
        _sample_practice(rng)
        if index % 4 == 3
        else Example(sample_text(rng, FAMILIES[index % 2], "train"), practice=False)
        for index in range(size)
    ]


def _sample_practice(rng: np.random.Generator) -> Example:
    """Draw an R text whose chance of a guess is uniform in [0, 1]."""
    chance = float(rng.random())
    problem = sample_problem(rng, "R", "train")
    completion = mixed_completion(rng, problem, [chance] * len(problem.operations))
    return Example(problem.text + completion, practice=True)


def collate(examples: Sequence[Example]) -> Batch:
    """Encode the texts, each with its end token, and label what is to be learned."""
    return training.padded([_labelled(example) for example in examples], tokenizer.EOS_ID)


def _labelled(example: Example) -> LabelledTokens:
    """Leave out prompts, whose digits are random, and the choices of practice texts."""
    text, practice = example
    start = text.index(":") + 1
    learned = [not (practice and character in CHOICES) for character in text[start:]]
    return LabelledTokens([*tokenizer.encode(text), tokenizer.EOS_ID], [*([False] * start), *learned, True])


def micro_batches(examples: Sequence[Example], count: int) -> list[Batch]:
    """Make batches of texts of like length."""
    return [collate(group) for group in training.grouped_by_length(examples, count, lambda e: len(e.text))]


def held_out_loss(model: Qwen2ForCausalLM, seed: int, size: int = 512) -> float:
    """Mean loss over completion tokens of held-out texts (no practice), in nats."""
    rng = np.random.default_rng(seed)
    texts = [sample_text(rng, FAMILIES[i % 2], "held_out") for i in range(size)]
    return training.mean_loss(model, [collate([Example(text, practice=False) for text in texts])])


def train(model: Qwen2ForCausalLM, config: TrainingConfig) -> None:
    """Fit the model to the stream of training texts."""
    training.fit(
        model,
        config,
        lambda rng: micro_batches(sample_examples(rng, config.batch_size), config.micro_batches),
    )


def main() -> None:
    """Train, report the held-out loss, save."""
    out, config = training.parsed_arguments("Train the pivot model.", TrainingConfig())
    torch.set_num_threads(1)
    model = build_model(config.seed)
    tqdm.write(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    train(model, config)
    training.save(model, tokenizer.build(), out)
    tqdm.write(f"held-out loss {held_out_loss(model, config.seed):.4f} nats per completion token")


if __name__ == "__main__":
    main()
