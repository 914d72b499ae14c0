"""Check the prose model offline: `python -m integration_tests.prose.evaluate`.

Owns plain generation with transformers (no server, no samplers) and the figures that the model card quotes:
the held-out loss, how often replies end, whether verdicts are right, how often characters are split.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from integration_tests.prose import tokenizer, train
from integration_tests.prose.corpus import Turn, sample_document

__all__ = ["MODEL", "ProseModel", "ends", "held_out_chats", "splits_characters"]

MODEL: Final = Path(__file__).with_name("model")
VERDICTS: Final = ("yes", "no")
MAX_NEW_TOKENS: Final = 800


class ProseModel:
    """A saved model with its tokenizer, on the CPU in float32, as the server runs it.

    Args:
        folder: of the model.
    """

    def __init__(self, folder: Path = MODEL) -> None:
        self.tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder)
        self.network: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def prompt(self, turns: Sequence[Turn]) -> str:
        """The chat as the template writes it, up to where the assistant begins."""
        messages = [turn._asdict() for turn in turns]
        rendered: str = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return rendered

    def _encoded(self, prompt: str) -> torch.Tensor:
        return torch.tensor([self.tokenizer.encode(prompt, add_special_tokens=False)])

    @torch.no_grad()
    def complete(
        self, prompt: str, seed: int | None = None, max_new_tokens: int = MAX_NEW_TOKENS
    ) -> list[int]:
        """Continue a prompt greedily, or at temperature 1 where there is a seed; new tokens with the end."""
        ids = self._encoded(prompt)
        sampling = {"do_sample": False} if seed is None else {"do_sample": True, "top_k": 0, "top_p": 1.0}
        torch.manual_seed(seed or 0)
        out: torch.Tensor = self.network.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, **sampling
        )
        new: list[int] = out[0, ids.shape[1] :].tolist()
        return new

    @torch.no_grad()
    def verdict_masses(self, prompt: str) -> tuple[float, float]:
        """Probabilities that the next token is "yes", and "no"."""
        p = self.network(input_ids=self._encoded(prompt)).logits[0, -1].softmax(-1)
        yes, no = (float(p[self.tokenizer.convert_tokens_to_ids(word)]) for word in VERDICTS)
        return yes, no


def ends(ids: Sequence[int]) -> bool:
    """Say whether a completion ended by itself."""
    return ids[-1] == tokenizer.EOS_ID


def splits_characters(built: PreTrainedTokenizerFast, ids: Sequence[int]) -> bool:
    """Say whether a valid text has a character whose bytes lie in several tokens."""
    alone = [built.decode([token]) for token in ids]
    return "\ufffd" not in built.decode(ids) and any("\ufffd" in text for text in alone)


def held_out_chats(seed: int) -> Iterator[tuple[Sequence[Turn], str]]:
    """Draw held-out chats without end: the turns before the last reply, and that reply."""
    rng = np.random.default_rng(seed)
    while True:
        document = sample_document(rng, "held_out")
        if not isinstance(document, str):
            yield document[:-1], document[-1].content


def _mean(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


def _measure_replies(model: ProseModel, chats: Sequence[Sequence[Turn]]) -> None:
    for label, sampled in (("greedy", False), ("T = 1", True)):
        completions = [
            model.complete(model.prompt(turns), seed=i if sampled else None)
            for i, turns in enumerate(tqdm(chats, desc=label, leave=False))
        ]
        ended = _mean([ends(ids) for ids in completions])
        split = _mean([splits_characters(model.tokenizer, ids) for ids in completions])
        lengths = [len(ids) for ids in completions]
        tqdm.write(
            f"{label}: {ended:.3f} end within {MAX_NEW_TOKENS} tokens, {split:.3f} split a character, "
            f"tokens {np.mean(lengths):.0f} on average, {max(lengths)} at most"
        )


def _measure_verdicts(model: ProseModel, chats: Sequence[tuple[Sequence[Turn], str]]) -> None:
    for start in ("Two answers", "A question", "Is this true"):
        asked = [(turns, reply) for turns, reply in chats if turns[-1].content.startswith(start)]
        masses = [model.verdict_masses(model.prompt(turns)) for turns, _ in asked]
        verdicts = ["yes" if yes > no else "no" for yes, no in masses]
        right = _mean(
            [verdict == reply[: len(verdict)] for verdict, (_, reply) in zip(verdicts, asked, strict=True)]
        )
        least = min(sum(pair) for pair in masses)
        tqdm.write(
            f"{start}...: {right:.3f} of {len(asked)} right; yes and no together have {least:.3f} or more"
        )


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description="Check the prose model offline.")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--count", type=int, default=100, help="held-out chats that are replied to")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = ProseModel(arguments.model)
    loss = train.held_out_loss(model.network, model.tokenizer, arguments.seed)
    tqdm.write(f"held-out loss {loss:.4f} nats per token")
    stream = held_out_chats(arguments.seed)
    chats = [next(stream) for _ in range(10 * arguments.count)]
    _measure_verdicts(model, chats)
    _measure_replies(model, [turns for turns, _ in chats[: arguments.count]])


if __name__ == "__main__":
    main()
