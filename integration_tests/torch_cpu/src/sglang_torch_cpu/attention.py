"""Attention in plain PyTorch operations for a whole batch at once.

SGLang's own backend for PyTorch makes one call per sequence and layer: 64 rows take 64 times as long as one,
which holds for no accelerator. Here the keys and values of a batch are gathered into one padded tensor, and a
bias says what is whose. Everything else is inherited.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["BatchedAttention", "attend", "decoding", "extending"]

LONG = 64
"""New tokens of a sequence beyond which it runs alone: padding others to its length would cost more."""


@dataclass(frozen=True)
class Group:
    """Sequences of a batch that run in one call.

    Args:
        slots: [sequences, keys] where their keys and values lie, padded with whatever the table holds.
        queries: [sequences, new tokens] the rows of the batch that are theirs, padded with their last one.
        bias: [sequences, 1, new tokens, keys] 0 where a query sees a key, else -inf.
        real: [sequences, new tokens] bool, which queries are no padding.
    """

    slots: torch.Tensor
    queries: torch.Tensor
    bias: torch.Tensor
    real: torch.Tensor


class BatchedAttention(TorchNativeAttnBackend):  # type: ignore[misc]  # SGLang's classes are untyped
    """Decoder self-attention, a batch at a time; other kinds of attention as SGLang has them."""

    def __init__(self, model_runner: Any) -> None:
        super().__init__(model_runner)
        self._groups: list[Group] = []

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Say once per pass, for all layers, what every query sees."""
        super().init_forward_metadata(forward_batch)
        lengths, table = forward_batch.seq_lens, self.req_to_token_pool.req_to_token
        owners = forward_batch.req_pool_indices
        if forward_batch.forward_mode.is_decode():
            self._groups = [decoding(table, owners, lengths)] if len(lengths) else []
        elif forward_batch.extend_seq_lens is not None:
            self._groups = extending(table, owners, lengths, forward_batch.extend_seq_lens)
        else:
            self._groups = []

    def _run_sdpa_forward_decode(
        self, query: torch.Tensor, output: torch.Tensor, *of: Any, **how: Any
    ) -> Any:
        if special(of, how):
            return super()._run_sdpa_forward_decode(query, output, *of, **how)
        return attend(self._groups, query, output, of[0], of[1], how["scaling"])

    def _run_sdpa_forward_extend(
        self, query: torch.Tensor, output: torch.Tensor, *of: Any, **how: Any
    ) -> Any:
        if special(of, how) or not how["causal"]:
            return super()._run_sdpa_forward_extend(query, output, *of, **how)
        return attend(self._groups, query, output, of[0], of[1], how["scaling"])


def special(of: tuple[Any, ...], how: dict[str, Any]) -> bool:
    """Whether a call is none of plain self-attention; the lengths of encoders are its last argument."""
    return of[-1] is not None or bool(how.get("is_cross_attn")) or how.get("sliding_window_size") is not None


def decoding(table: torch.Tensor, owners: torch.Tensor, lengths: torch.Tensor) -> Group:
    """One new token per sequence, which sees its whole sequence.

    Args:
        table: [requests, positions] slots.
        owners: [sequences] rows of the table.
        lengths: [sequences] with the new token.
    """
    keys = int(lengths.max())
    seen = torch.arange(keys)[None, :] < lengths[:, None]
    queries = torch.arange(len(lengths))[:, None]
    real = torch.ones_like(queries, dtype=torch.bool)
    return Group(table[owners, :keys], queries, _bias(seen[:, None, None, :]), real)


def extending(
    table: torch.Tensor, owners: torch.Tensor, lengths: torch.Tensor, new: torch.Tensor
) -> list[Group]:
    """Several new tokens per sequence, each of which sees what lies before it and itself.

    Args:
        table, owners, lengths: as `decoding`.
        new: [sequences] new tokens, in order the rows of the batch.
    """
    first = torch.cumsum(new, 0) - new
    parts = [torch.nonzero(new <= LONG)[:, 0], *torch.nonzero(new > LONG)]
    return [
        _extending(table, owners[part], lengths[part], new[part], first[part]) for part in parts if len(part)
    ]


def _extending(
    table: torch.Tensor, owners: torch.Tensor, lengths: torch.Tensor, new: torch.Tensor, first: torch.Tensor
) -> Group:
    keys, steps = int(lengths.max()), torch.arange(int(new.max()))[None, :]
    real = steps < new[:, None]
    place = torch.minimum(steps, new[:, None] - 1)  # padding repeats the last query
    seen = torch.arange(keys)[None, None, :] <= ((lengths - new)[:, None] + place)[:, :, None]
    return Group(table[owners, :keys], first[:, None] + place, _bias(seen[:, None]), real)


def _bias(seen: torch.Tensor) -> torch.Tensor:
    return torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)


def attend(
    groups: list[Group],
    query: torch.Tensor,
    output: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Write the attention of every query into the output, and return that.

    Args:
        groups: of the batch.
        query, output: [tokens, heads, width].
        key_cache, value_cache: [slots, key heads, width].
        scaling: of the scores.
    """
    for group in groups:
        keys, values = (_gathered(cache, group.slots, query.dtype) for cache in (key_cache, value_cache))
        asked, bias = query[group.queries].transpose(1, 2), group.bias.to(query.dtype)
        if group.queries.shape[1] == 1:  # heads that share a key are queries of it: no copies of the keys
            shared = asked.reshape(len(asked), keys.shape[1], -1, query.shape[2])
            attended = scaled_dot_product_attention(shared, keys, values, attn_mask=bias, scale=scaling)
            output[group.queries[:, 0]] = attended.reshape(len(asked), *output.shape[1:])
        else:
            attended = scaled_dot_product_attention(
                asked, keys, values, attn_mask=bias, scale=scaling, enable_gqa=asked.shape[1] != keys.shape[1]
            )
            output[group.queries[group.real]] = attended.transpose(1, 2)[group.real]
    return output


def _gathered(cache: torch.Tensor, slots: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[sequences, key heads, keys, width] out of a cache."""
    rows = cache.index_select(0, slots.flatten()).to(dtype)
    return rows.view(*slots.shape, *cache.shape[1:]).transpose(1, 2)
