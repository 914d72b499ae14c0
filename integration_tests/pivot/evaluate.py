"""Check the pivot model offline: `python -m integration_tests.pivot.evaluate`.

Owns plain sampling with transformers (no server, no power sampling) and the table of accuracies on held-out
problems that the model card quotes. It answers two questions: is the work reliable (worked steps), and does
low temperature hurt (accuracy at T = 1, T = 0.25 and greedy)?
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from tqdm import tqdm
from transformers import Qwen2ForCausalLM

from integration_tests.pivot import tokenizer
from integration_tests.pivot.problems import (
    FAMILIES,
    Problem,
    extract_answer,
    is_correct,
    is_worked,
    parse_steps,
    problems,
    worked_completion,
)

__all__ = ["GREEDY", "Summary", "complete", "summarize", "worked_log_probability"]

GREEDY: Final = 0.0
TEMPERATURES: Final = (1.0, 0.25, GREEDY)
_MAX_NEW_TOKENS: Final = 64


@dataclass(frozen=True, slots=True)
class Summary:
    """What a set of completions did, as fractions of completions (`worked_steps_right`: of worked steps)."""

    accuracy: float
    worked_path: float
    answered: float
    worked_steps_right: float


@torch.no_grad()
def complete(
    model: Qwen2ForCausalLM, prompts: Sequence[str], temperature: float, generator: torch.Generator
) -> list[str]:
    """Complete all prompts in one left-padded batch.

    Args:
        model: the pivot model, on the CPU.
        prompts: texts to continue.
        temperature: softmax temperature of the full vocabulary; `GREEDY` takes the likeliest token.
        generator: source of all randomness.

    Returns:
        The completions, without the end token; cut at 64 tokens.
    """
    width = max(map(len, prompts))
    rows = [[tokenizer.EOS_ID] * (width - len(p)) + tokenizer.encode(p) for p in prompts]
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    tokens, cache, new = torch.tensor(rows), None, list[torch.Tensor]()
    done = torch.zeros(len(prompts), dtype=torch.bool)
    while not done.all() and len(new) < _MAX_NEW_TOKENS:
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        out = model(input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache)
        cache = out.past_key_values
        tokens = _pick(out.logits[:, -1], temperature, generator)
        done |= tokens[:, 0] == tokenizer.EOS_ID
        new.append(tokens)
        mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
    decode = tokenizer.build().decode
    return [decode(_before_end(row)) for row in torch.cat(new, dim=1).tolist()]


def _pick(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> torch.Tensor:
    if temperature == GREEDY:
        return logits.argmax(-1, keepdim=True)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)


def _before_end(row: list[int]) -> list[int]:
    return row[: row.index(tokenizer.EOS_ID)] if tokenizer.EOS_ID in row else row


def summarize(asked: Sequence[Problem], completions: Sequence[str]) -> Summary:
    """Grade completions against their problems."""
    pairs = list(zip(asked, completions, strict=True))
    worked = [step.right for p, c in pairs for step in parse_steps(p, c) if step.worked]
    return Summary(
        accuracy=_mean([is_correct(p, c) for p, c in pairs]),
        worked_path=_mean([is_worked(p, c) for p, c in pairs]),
        answered=_mean([extract_answer(c) is not None for _, c in pairs]),
        worked_steps_right=_mean(worked),
    )


def _mean(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else float("nan")


@torch.no_grad()
def worked_log_probability(model: Qwen2ForCausalLM, problem: Problem) -> float:
    """Log probability of the worked completion with its end token, in nats.

    The law of the texts gives `log 0.28` (Q) and `n log 0.4` (R, n operations); what is missing from that
    is what the model gets wrong.
    """
    tokens = [*tokenizer.encode(problem.text + worked_completion(problem)), tokenizer.EOS_ID]
    logp = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
    start = len(problem.text)
    return float(sum(logp[i - 1, tokens[i]] for i in range(start, len(tokens))))


def _print_by_operations(asked: Sequence[Problem], completions: Sequence[str], label: str) -> None:
    for count in sorted({len(p.operations) for p in asked}):
        pairs = [(p, c) for p, c in zip(asked, completions, strict=True) if len(p.operations) == count]
        accuracy = _mean([is_correct(p, c) for p, c in pairs])
        tqdm.write(f"    {label}, {count} operations: accuracy {accuracy:.3f} of {len(pairs)}")


def main() -> None:
    """Print the table for both families."""
    parser = argparse.ArgumentParser(description="Check the pivot model offline.")
    parser.add_argument("--model", type=Path, default=Path(__file__).with_name("model"))
    parser.add_argument("--count", type=int, default=200, help="held-out problems per family")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = Qwen2ForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(arguments.seed)
    for family in FAMILIES:
        asked = problems(family, arguments.count, arguments.seed)
        log_p = torch.tensor([worked_log_probability(model, p) for p in asked])
        tqdm.write(f"{family}: mean log p of the worked completion {log_p.mean():.3f} nats")
        for temperature in tqdm(TEMPERATURES, desc=family, leave=False):
            completions = complete(model, [p.text for p in asked], temperature, generator)
            label = "greedy" if temperature == GREEDY else f"T = {temperature:g}"
            tqdm.write(f"  {label}: {summarize(asked, completions)}")
            if family == "R" and temperature in (1.0, GREEDY):
                _print_by_operations(asked, completions, label)


if __name__ == "__main__":
    main()
