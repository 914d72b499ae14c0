"""What clients ask beside the tokens of an answer: `top_logprobs`, `token_ids_logprob`. Tokenizer process.

They are read where the tokens are drawn, from the logits that every child's rows are drawn from: after
logit_bias and the masks of min_new_tokens, before temperature, policy and truncation, at temperature 1. So a
banned token is never shown as a likely one, the token of the answer stands among the others with its own log
probability, and nothing is computed twice. Requests that do not ask cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from sglang_power.types import Alternatives, FloatArray, Tokens


@dataclass(frozen=True, slots=True)
class AlternativesRequest:
    """What a request asks of every row.

    Args:
        top: how many of the most likely tokens.
        named: which tokens.
    """

    top: int
    named: tuple[int, ...]

    @classmethod
    def of(cls, manager: Any, obj: Any) -> Self | None:
        """What a request asks for; None where it asks for nothing beside its own tokens."""
        if not obj.return_logprob or not (obj.top_logprobs_num or obj.token_ids_logprob):
            return None
        top = min(obj.top_logprobs_num or 0, manager.model_config.vocab_size)
        return cls(top, tuple(obj.token_ids_logprob or ()))

    def ask(self, child: Any) -> None:
        """Have SGLang's log probabilities sent back with a child's tokens."""
        child.return_logprob, child.logprob_start_len = True, -1
        child.top_logprobs_num, child.token_ids_logprob = self.top, list(self.named) or None
        child.return_text_in_logprobs = False
        child.return_flat_raw_output_top_logprobs = False

    def read(self, meta: dict[str, Any], start: int) -> Alternatives:
        """Those of a child's tokens, from one of its tokens on; fewer where the rest has not arrived."""
        tops = (meta.get("output_top_logprobs") or [])[start:] if self.top else None
        named = (meta.get("output_token_ids_logprobs") or [])[start:] if self.named else None
        count = min(len(rows) for rows in (tops, named) if rows is not None)
        return Alternatives(
            _table(tops, 1, count, self.top).astype(np.int32),
            _table(tops, 0, count, self.top).astype(np.float32),
            _table(named, 0, count, len(self.named)).astype(np.float32),
        )

    def written(self, manager: Any, tokens: Tokens, with_text: bool) -> dict[str, Any]:
        """Those of an answer, as SGLang writes them in `meta_info`."""
        rows, fields = tokens.alternatives, dict[str, Any]()
        if self.top:
            pairs = [] if rows is None else zip(rows.top_log_p.tolist(), rows.top_ids.tolist(), strict=True)
            fields["output_top_logprobs"] = [
                manager.detokenize_logprob_tokens(log_p, ids, with_text) for log_p, ids in pairs
            ]
        if self.named:
            values = [] if rows is None else rows.named_log_p.tolist()
            fields["output_token_ids_logprobs"] = [
                manager.detokenize_logprob_tokens(log_p, list(self.named), with_text) for log_p in values
            ]
        return fields


def _table(rows: list[Any] | None, column: int, count: int, width: int) -> FloatArray:
    """[count, width] one column, 0 log p or 1 id, of SGLang's lists of (log p, id, text)."""
    kept = [] if rows is None else rows[:count]
    return np.array([[entry[column] for entry in row] for row in kept], np.float64).reshape(count, width)
