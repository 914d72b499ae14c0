"""The algorithm as published, in a process of its own: one sequence at a time, by Hugging Face transformers.

Every proposal is a call of `generate` on prompt and kept tokens, which computes all of them again: no cache
is kept between calls. The first line of standard input is a `Setup`, each further one a question; a line of
JSON answers each. `published_client` starts it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import Any, TextIO

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from sglang_power.serve_benchmark.metropolis import Piece, sample
from sglang_power.serve_benchmark.naive import ChainSettings


class Setup(BaseModel):
    """What the process is told first.

    Args:
        model: folder of the weights.
        chain: alpha, B, N and the proposal temperature.
        threads: of torch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    chain: ChainSettings
    threads: int = 1


class Model:
    """A causal language model of transformers, asked for one continuation at a time."""

    def __init__(self, setup: Setup) -> None:
        import transformers  # Takes seconds, which only this process needs to wait for.

        torch.set_num_threads(setup.threads)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = "auto" if self._device == "cuda" else torch.float32
        load: Any = transformers.AutoModelForCausalLM.from_pretrained
        self._model: Any = load(setup.model, dtype=dtype).eval().to(self._device)
        self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(setup.model)
        self._tau = setup.chain.proposal_temperature
        ends = self._model.generation_config.eos_token_id
        self._ends = {ends} if isinstance(ends, int) else set(ends or ())

    def ids(self, text: str) -> list[int]:
        """Return the tokens of a prompt."""
        found: list[int] = self._tokenizer(text)["input_ids"]
        return found

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of an answer."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    @torch.no_grad()
    def complete(self, before: Sequence[int], count: int) -> Piece:
        """Draw at most `count` tokens from p^(1/tau), and state both laws of each."""
        asked = torch.tensor([list(before)], device=self._device)
        drawn = self._model.generate(
            input_ids=asked,
            attention_mask=torch.ones_like(asked),
            max_new_tokens=count,
            do_sample=True,
            temperature=self._tau,
            top_k=0,
            top_p=1.0,
            return_dict_in_generate=True,
            output_logits=True,
        )
        ids = drawn.sequences[0, len(before) :]
        logits = torch.cat(list(drawn.logits)).float()
        log_p, log_q = (_of_drawn(logits / tau, ids) for tau in (1.0, self._tau))
        tokens = tuple(ids.tolist())
        return Piece(tokens, log_p, log_q, tokens[-1] in self._ends, prefilled=len(before))


def _of_drawn(logits: torch.Tensor, ids: torch.Tensor) -> tuple[float, ...]:
    """log softmax [T, vocab] at the drawn ids [T], nats."""
    log_law = logits.log_softmax(dim=-1)
    return tuple(log_law.gather(1, ids[:, None])[:, 0].tolist())


def answered(model: Model, chain: ChainSettings, question: dict[str, Any]) -> dict[str, Any]:
    """Return the last state of a chain, and what its calls came to."""
    prompt, seed = model.ids(question["text"]), int(question["seed"])
    torch.manual_seed(seed)

    async def complete(prefix: Sequence[int], count: int) -> Piece:
        return model.complete([*prompt, *prefix], count)

    rng = np.random.default_rng(seed)
    done = asyncio.run(sample(complete, chain, int(question["room"]), rng, "paper"))
    return {
        "text": model.text(done.ids),
        "returned": len(done.ids),
        "decoded": done.cost.decoded,
        "prefilled": done.cost.prefilled,
        "depth": done.cost.depth,
    }


def serve(questions: TextIO, answers: TextIO) -> None:
    """Answer until there are no more questions."""

    def tell(line: dict[str, Any]) -> None:
        answers.write(json.dumps(line) + "\n")
        answers.flush()

    setup = Setup.model_validate_json(questions.readline())
    model = Model(setup)
    tell({"ready": True})
    for line in questions:
        tell(answered(model, setup.chain, json.loads(line)))


if __name__ == "__main__":
    # What libraries print must not come between the answers.
    own, sys.stdout = sys.stdout, sys.stderr
    serve(sys.stdin, own)
