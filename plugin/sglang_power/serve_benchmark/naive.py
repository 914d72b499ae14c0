"""The naive client: Metropolis-Hastings over plain requests of /generate, one after the other.

Log probabilities at temperature 1 are all that SGLang states, so proposals are drawn at temperature 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from sglang_power.errors import ConfigError
from sglang_power.fields import UNTEMPERED
from sglang_power.serve_benchmark.askers import NEVER_BY_DEFAULT, Answer, Json, generate, uncached
from sglang_power.serve_benchmark.connection import Connection
from sglang_power.serve_benchmark.metropolis import Piece, sample


class ChainSettings(BaseModel):
    """What the controls take of a chain's parameters; uniform cuts and nothing else.

    Args:
        alpha: of the target.  block_size: B.  steps: N.
        proposal_temperature: tau.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    alpha: float = 4.0
    block_size: int = 192
    steps: int = 10
    proposal_temperature: float = 1.0

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> ChainSettings:
        """Return those of a row.

        Raises:
            ConfigError: it cuts in another way.
        """
        if params.get("cut", "uniform") != "uniform":
            raise ConfigError(f"the controls cut uniformly, not by {params['cut']!r}")
        return cls.model_validate({name: value for name, value in params.items() if name != "cut"})


class NaiveAsker:
    """One chain per answer."""

    def __init__(self, connection: Connection, settings: ChainSettings) -> None:
        if settings.proposal_temperature != 1.0:
            raise ConfigError("the naive client proposes at temperature 1 only")
        self._connection, self._settings = connection, settings

    async def ask(self, text: str, seed: int, room: int) -> Answer:
        """Return the last state of a chain."""
        calls = _Calls(self._connection, text)
        chain = await sample(calls.complete, self._settings, room, np.random.default_rng(seed), "exact")
        return Answer(
            text=await calls.decoded(chain.ids),
            returned=len(chain.ids),
            decoded=chain.cost.decoded,
            prefilled=chain.cost.prefilled,
            depth=chain.cost.depth,
        )


class _Calls:
    """The requests of one chain; the first one says how the prompt is tokenised."""

    def __init__(self, connection: Connection, text: str) -> None:
        self._connection, self._text = connection, text
        self._prompt: list[int] | None = None

    async def complete(self, prefix: Sequence[int], count: int) -> Piece:
        """Draw what follows a prefix, at temperature 1."""
        body: Json = {
            "sampling_params": {**UNTEMPERED, **NEVER_BY_DEFAULT, "max_new_tokens": count},
            "return_logprob": True,
        }
        if self._prompt is None:
            body |= {"text": self._text, "return_prompt_token_ids": True}
        else:
            body |= {"input_ids": [*self._prompt, *prefix]}
        answer = await generate(self._connection, body)
        if self._prompt is None:
            self._prompt = answer["prompt_token_ids"]
        meta, ids = answer["meta_info"], tuple(int(token) for token in answer["output_ids"])
        log_p = tuple(float(entry[0]) for entry in meta["output_token_logprobs"])
        return Piece(ids, log_p, log_p, meta["finish_reason"]["type"] == "stop", uncached(meta))

    async def decoded(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        reply = await self._connection.post("/detokenize", {"tokens": list(ids)})
        text: str = reply.json()["text"]
        return text
