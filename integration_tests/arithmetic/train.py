"""Train the arithmetic model: `python -m integration_tests.arithmetic.train --out FOLDER`.

Owns the architecture, the training stream and when to stop: as soon as greedy decoding solves ENOUGH of the
validation problems, which are neither trained on nor measured later. A model that solves everything would
leave samplers nothing to do, one that solves nothing would give them nothing to work with. The loop and the
files are `integration_tests.training`; weights are stored in bfloat16. The committed ones took 7 CPU minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from integration_tests import training
from integration_tests.arithmetic import tokenizer
from integration_tests.arithmetic.problems import (
    MAX_NEW_TOKENS,
    Problem,
    Split,
    is_correct,
    problems,
    sample_problem,
    solution,
)
from integration_tests.training import Batch, LabelledTokens, TrainingConfig

__all__ = ["DEFAULT", "ENOUGH", "build_model", "greedy_accuracy", "held_out_loss", "sample_batches", "train"]

DEFAULT: Final = TrainingConfig(steps=3000, batch_size=32, micro_batches=2, peak_learning_rate=2e-3)
"""The run that made the committed weights, had it gone on to its end."""

ENOUGH: Final = 0.55
"""Share of validation problems that greedy decoding solves when training stops."""

CHECK_EVERY: Final = 50
"""Steps between two looks at the validation problems."""

CHECKED: Final = 100
"""Validation problems at each look."""

HELD_OUT: Final = 200
"""Problems of the figure at the end, which the model card quotes."""

_VALIDATION_SEED: Final = 7


def build_model(seed: int) -> LlamaForCausalLM:
    """Build the untrained model: Llama, 5 layers of width 192, 2.3M parameters, tied embeddings, float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tokenizer.VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=tokenizer.MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.EOS_ID,
        pad_token_id=tokenizer.EOS_ID,
        initializer_range=0.05,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def labelled(built: PreTrainedTokenizerFast, problem: Problem) -> LabelledTokens:
    """Encode a problem with its solution, of which the solution and the end are to be learned."""
    prompt = built.encode(problem.text)
    worked = [*built.encode(solution(problem)), tokenizer.EOS_ID]
    return LabelledTokens([*prompt, *worked], [*([False] * len(prompt)), *([True] * len(worked))])


def sample_batches(
    built: PreTrainedTokenizerFast, rng: np.random.Generator, split: Split, size: int, micro_batches: int
) -> Sequence[Batch]:
    """Draw texts of the split as micro-batches of like lengths."""
    texts = [labelled(built, sample_problem(rng, split)) for _ in range(size)]
    groups = training.grouped_by_length(texts, micro_batches, lambda text: len(text.tokens))
    return [training.padded(group, tokenizer.EOS_ID) for group in groups]


def held_out_loss(
    model: LlamaForCausalLM, built: PreTrainedTokenizerFast, seed: int, size: int = 512
) -> float:
    """Return the mean loss over the tokens of held-out solutions, in nats."""
    batches = sample_batches(built, np.random.default_rng(seed), "held_out", size, max(1, size // 64))
    return training.mean_loss(model, batches)


@torch.no_grad()
def greedy_accuracy(
    model: LlamaForCausalLM, built: PreTrainedTokenizerFast, asked: Sequence[Problem]
) -> float:
    """Return the share of problems that greedy decoding solves, all of them in one batch."""
    prompts = built([problem.text for problem in asked], padding=True, return_tensors="pt")
    out = model.generate(
        prompts["input_ids"],
        attention_mask=prompts["attention_mask"],
        do_sample=False,
        max_new_tokens=MAX_NEW_TOKENS,
        pad_token_id=tokenizer.EOS_ID,
    )
    width = prompts["input_ids"].shape[1]
    texts = built.batch_decode(out[:, width:], skip_special_tokens=True)
    return sum(map(is_correct, asked, texts)) / len(asked)


def train(model: LlamaForCausalLM, built: PreTrainedTokenizerFast, config: TrainingConfig) -> None:
    """Fit the model to the stream of training texts until greedy decoding solves ENOUGH."""
    asked = problems(CHECKED, _VALIDATION_SEED, "validation")

    def enough(steps: int) -> bool:
        if steps % CHECK_EVERY:
            return False
        model.eval()
        accuracy = greedy_accuracy(model, built, asked)
        model.train()
        tqdm.write(f"step {steps}: greedy solves {accuracy:.3f} of {CHECKED} validation problems")
        return accuracy >= ENOUGH

    training.fit(
        model,
        config,
        lambda rng: sample_batches(built, rng, "train", config.batch_size, config.micro_batches),
        enough,
    )


def main() -> None:
    """Train, report what was reached on held-out problems, save."""
    out, config = training.parsed_arguments("Train the arithmetic model.", DEFAULT)
    torch.set_num_threads(1)
    built, model = tokenizer.build(), build_model(config.seed)
    tqdm.write(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    train(model, built, config)
    training.save(model.to(torch.bfloat16), built, out)
    model.to(torch.float32)
    accuracy = greedy_accuracy(model, built, problems(HELD_OUT, config.seed + 1))
    tqdm.write(f"greedy solves {accuracy:.3f} of {HELD_OUT} held-out problems, in float32 from bfloat16")
    tqdm.write(f"held-out loss {held_out_loss(model, built, config.seed):.4f} nats per token")


if __name__ == "__main__":
    main()
