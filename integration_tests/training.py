"""What the built-in models' training scripts share: batches, the loss, the loop, the saved folder.

One thread and one seed, so the same machine and library versions give the same weights. Knows neither the
texts nor the tokenizers: those are `pivot` and `prose`.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import numpy as np
import torch
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

__all__ = [
    "IGNORED",
    "Batch",
    "LabelledTokens",
    "TrainingConfig",
    "fit",
    "grouped_by_length",
    "mean_loss",
    "padded",
    "parsed_arguments",
    "save",
]

IGNORED: Final = -100
"""The label of a position where nothing is to be learned."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """The knobs of a run; the defaults made the committed weights of the pivot model."""

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


class LabelledTokens(NamedTuple):
    """The tokens of one text, and for each of them whether it is to be learned."""

    tokens: Sequence[int]
    learned: Sequence[bool]


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts as tensors, padded on the right.

    `input_ids` and `labels` are `[batch, length]` int64. Labels are -100 where nothing is to be learned: on
    padding, and where the texts say so.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor

    @property
    def targets(self) -> int:
        """Number of tokens with a label."""
        return int((self.labels != IGNORED).sum())


def padded(texts: Sequence[LabelledTokens], pad_id: int) -> Batch:
    """Make a batch of texts of unlike length."""
    length = max(len(text.tokens) for text in texts)
    input_ids = torch.full((len(texts), length), pad_id)
    labels = torch.full((len(texts), length), IGNORED)
    for row, text in enumerate(texts):
        tokens = torch.tensor(text.tokens)
        input_ids[row, : len(tokens)] = tokens
        labels[row, : len(tokens)] = tokens.where(torch.tensor(text.learned), IGNORED)
    return Batch(input_ids, labels)


def grouped_by_length(items: Sequence[_T], groups: int, length: Callable[[_T], int]) -> list[Sequence[_T]]:
    """Group items of like length, so that little of a step is spent on padding."""
    ordered = sorted(items, key=length)
    size = math.ceil(len(ordered) / groups)
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


def _summed_loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=batch.input_ids).logits[:, :-1]
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )


@torch.no_grad()
def mean_loss(model: PreTrainedModel, batches: Sequence[Batch]) -> float:
    """Mean loss over the tokens with a label, in nats."""
    total = sum(float(_summed_loss(model, batch)) for batch in batches)
    return total / sum(batch.targets for batch in batches)


def fit(
    model: PreTrainedModel,
    config: TrainingConfig,
    draw: Callable[[np.random.Generator], Sequence[Batch]],
    enough: Callable[[int], bool] | None = None,
) -> None:
    """Run AdamW on an endless stream of fresh texts: no text repeats but by chance.

    Args:
        model: changed in place.
        config: the knobs; `batch_size` and `micro_batches` are for `draw` to obey.
        draw: the micro-batches of one step.
        enough: asked after each step, with the number of steps so far, whether to stop here.
    """
    rng = np.random.default_rng(config.seed)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=config.weight_decay)
    model.train()
    with tqdm(range(config.steps), desc="train", unit="step", mininterval=1) as bar:
        for step in bar:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate(step)
            loss = _accumulate(model, draw(rng))
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_norm)
            optimizer.step()
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            if enough is not None and enough(step + 1):
                break
    model.eval()


def _accumulate(model: PreTrainedModel, batches: Sequence[Batch]) -> float:
    """Leave the gradient of the mean loss over all batches on the model, and return that loss."""
    model.zero_grad(set_to_none=True)
    targets, total = sum(batch.targets for batch in batches), 0.0
    for batch in batches:
        loss = _summed_loss(model, batch) / targets
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
        total += loss.item()
    return total


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write weights, configuration, tokenizer and chat template: a folder that SGLang serves as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def parsed_arguments(description: str, default: TrainingConfig) -> tuple[Path, TrainingConfig]:
    """Read the command line of a training script: the model's folder, and the knobs worth turning."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--steps", type=int, default=default.steps)
    parser.add_argument("--batch-size", type=int, default=default.batch_size)
    parser.add_argument("--learning-rate", type=float, default=default.peak_learning_rate)
    parser.add_argument("--seed", type=int, default=default.seed)
    arguments = parser.parse_args()
    config = dataclasses.replace(
        default,
        steps=arguments.steps,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        peak_learning_rate=arguments.learning_rate,
    )
    return arguments.out, config
