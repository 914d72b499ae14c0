"""Train the pivot model: `python -m integration_tests.pivot.train --out integration_tests/pivot/model`.

Owns the architecture, the training stream and the files of the model folder (but not its README.md). One
thread and one seed, so the same machine and library versions give the same weights; about 15 CPU minutes
on one core.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from tqdm import tqdm
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from integration_tests.pivot import tokenizer
from integration_tests.pivot.problems import CHOICES, FAMILIES, mixed_completion, sample_problem, sample_text

__all__ = [
    "Batch",
    "Example",
    "TrainingConfig",
    "build_model",
    "collate",
    "held_out_loss",
    "micro_batches",
    "sample_examples",
    "save",
    "train",
]

_IGNORED: Final = -100


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """The knobs of a run; the defaults made the committed weights."""

    steps: int = 4000
    batch_size: int = 64
    micro_batches: int = 4
    peak_learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    gradient_norm: float = 1.0
    seed: int = 0

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine to zero."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        return self.peak_learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts as tensors, padded on the right.

    `input_ids` and `labels` are `[batch, length]` int64. Labels are -100 where nothing is to be learned: on
    padding, on prompts (their digits are random), and on the choices of practice texts.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor

    @property
    def targets(self) -> int:
        """Number of tokens with a label."""
        return int((self.labels != _IGNORED).sum())


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
    length = max(len(e.text) for e in examples) + 1
    input_ids = torch.full((len(examples), length), tokenizer.EOS_ID)
    labels = torch.full((len(examples), length), _IGNORED)
    for row, (text, practice) in enumerate(examples):
        tokens = torch.tensor([*tokenizer.encode(text), tokenizer.EOS_ID])
        input_ids[row, : len(tokens)] = tokens
        start = text.index(":") + 1
        learned = [not (practice and character in CHOICES) for character in text[start:]] + [True]
        labels[row, start : len(tokens)] = tokens[start:].where(torch.tensor(learned), _IGNORED)
    return Batch(input_ids, labels)


def micro_batches(examples: Sequence[Example], count: int) -> list[Batch]:
    """Group texts of like length, so that little of a step is spent on padding."""
    by_length = sorted(examples, key=lambda e: len(e.text))
    size = math.ceil(len(by_length) / count)
    return [collate(by_length[i : i + size]) for i in range(0, len(by_length), size)]


def _summed_loss(model: Qwen2ForCausalLM, batch: Batch) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=batch.input_ids).logits[:, :-1]
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=_IGNORED, reduction="sum"
    )


@torch.no_grad()
def held_out_loss(model: Qwen2ForCausalLM, seed: int, size: int = 512) -> float:
    """Mean loss over completion tokens of held-out texts (no practice), in nats."""
    rng = np.random.default_rng(seed)
    texts = [sample_text(rng, FAMILIES[i % 2], "held_out") for i in range(size)]
    batch = collate([Example(text, practice=False) for text in texts])
    return float(_summed_loss(model, batch)) / batch.targets


def train(model: Qwen2ForCausalLM, config: TrainingConfig) -> None:
    """Run AdamW on an endless stream of fresh texts: no text repeats but by chance."""
    rng = np.random.default_rng(config.seed)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=config.weight_decay)
    model.train()
    with tqdm(range(config.steps), desc="train", unit="step", mininterval=1) as bar:
        for step in bar:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate(step)
            batches = micro_batches(sample_examples(rng, config.batch_size), config.micro_batches)
            loss = _accumulate(model, batches)
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_norm)
            optimizer.step()
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
    model.eval()


def _accumulate(model: Qwen2ForCausalLM, batches: Sequence[Batch]) -> float:
    """Leave the gradient of the mean loss over all batches on the model, and return that loss."""
    model.zero_grad(set_to_none=True)
    targets, total = sum(batch.targets for batch in batches), 0.0
    for batch in batches:
        loss = _summed_loss(model, batch) / targets
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
        total += loss.item()
    return total


def save(model: Qwen2ForCausalLM, folder: Path) -> None:
    """Write weights, configuration, tokenizer and chat template: a folder that SGLang serves as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.EOS_ID)
    model.save_pretrained(folder)
    tokenizer.build().save_pretrained(folder)


def main() -> None:
    """Train, report the held-out loss, save."""
    default = TrainingConfig()
    parser = argparse.ArgumentParser(description="Train the pivot model.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--batch-size", type=int, default=default.batch_size)
    parser.add_argument("--learning-rate", type=float, default=default.peak_learning_rate)
    parser.add_argument("--seed", type=int, default=default.seed)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = TrainingConfig(
        steps=arguments.steps,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        peak_learning_rate=arguments.learning_rate,
    )
    model = build_model(config.seed)
    tqdm.write(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    train(model, config)
    save(model, arguments.out)
    tqdm.write(f"held-out loss {held_out_loss(model, config.seed):.4f} nats per completion token")


if __name__ == "__main__":
    main()
