"""An engine of children whose answers are scripted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from sglang_power.server.config import ServerConfig
from sglang_power.sglang_host.child_params import META_KEY
from sglang_power.sglang_host.tokenizer.alternatives import AlternativesRequest
from sglang_power.sglang_host.tokenizer.children import ChildEngine, Prompt
from sglang_power.sglang_host.tokenizer.host import Host
from sglang_power.sglang_host.tokenizer.parent import Parent
from sglang_power.sglang_host.tokenizer.stopping import StopRule
from sglang_power.types import ROW_FIELDS, Usage

END = 127


class Characters:
    """A tokenizer with one token per ASCII character; token 127 ends."""

    eos_token_id = END

    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(chr(token) for token in ids if token != END)


MANAGER = SimpleNamespace(
    tokenizer=Characters(),
    model_config=SimpleNamespace(hf_eos_token_id=[END], vocab_size=128),
    context_len=256,
    num_reserved_tokens=0,
    max_req_input_len=250,
)


PROMPT = Prompt(Characters().encode("2+2="), {"cached_tokens": 0}, Usage())


class ScriptedParent(Parent):
    """Every child says `says`, up to a stop string in its own words, its end, or its length."""

    def __init__(self, says: str, beside: dict[str, Any] | None = None, **params: Any) -> None:
        nothing = {"return_logprob": False, "top_logprobs_num": 0, "token_ids_logprob": None}
        obj = SimpleNamespace(rid="r", sampling_params=params, background=False, **(beside or nothing))
        super().__init__(Host(MANAGER, lambda *_: None, obj, None, ServerConfig()))
        self._says = [*Characters().encode(says), END]
        self.children: list[Any] = []

    async def run(self, child: Any, *_: Any) -> dict[str, Any]:
        self.children.append(child)
        asked, stop = child.sampling_params, StopRule.of(MANAGER, child.sampling_params)
        said = self._says[: asked["max_new_tokens"]]
        unstoppable = asked["min_new_tokens"]
        said = said[
            : next((n for n in range(unstoppable + 1, len(said)) if stop.stops_at(said, n)), len(said))
        ]
        finished = stop.stops_at(said, len(said))
        matched = {"type": "stop", "matched": stop.string_at(said, len(said)) or said[-1]}
        reason = matched if finished else {"type": "length", "length": len(said)}
        rows = np.zeros((len(said), len(ROW_FIELDS))).tolist()
        meta = {"finish_reason": reason, "prompt_tokens": len(child.input_ids), META_KEY: rows}
        return {"output_ids": said, "meta_info": meta | logprobs(child, said)}


def logprobs(child: Any, said: list[int]) -> dict[str, Any]:
    """What SGLang adds where it is asked: rank j of a row has log p -j/8 and the id of its token plus j."""
    if not child.return_logprob:
        return {}
    tops = [[(-j / 8, token + j, None) for j in range(child.top_logprobs_num)] for token in said]
    named = child.token_ids_logprob
    both: dict[str, Any] = {"output_top_logprobs": tops} if child.top_logprobs_num else {}
    if named is not None:
        both["output_token_ids_logprobs"] = [[(-token / 4, v, None) for v in named] for token in said]
    return both


def engine(parent: ScriptedParent) -> ChildEngine:
    asked = AlternativesRequest.of(MANAGER, parent.obj)
    return ChildEngine(parent, PROMPT, StopRule.of(MANAGER, parent.params), None, asked=asked)
