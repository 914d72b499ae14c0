"""The record that `row_statistics` returns. Owns no arithmetic and knows no backend."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RowStatistics:
    """Statistics of each row of logits; nats, float32 on the device of the logits.

    Float64 where `backend="reference"` was given float64 logits. A row with a NaN or +inf logit, or without
    any finite logit, has no law: all its figures are NaN and its `top2_ids` are -1.

    Attributes:
        log_p: `[batch]` log p(id), p = softmax of the logits at temperature 1.
        log_q: `[batch]` log q(id), q proportional to p^kappa on the kept set; -inf outside of it.
        log_z: `[batch]` log of the sum of p(v)^kappa over the whole vocabulary.
        entropy: `[batch]` H = -sum p log p.
        varentropy: `[batch]` sum p (log p + H)^2, nats squared.
        logit_mean: `[batch]` mean of the finite logits.
        logit_std: `[batch]` population standard deviation of the finite logits.
        top2_ids: `[batch, 2]` int64, most likely token first, ties to the lower id; -1 where there is no
            such token.
        top2_probs: `[batch, 2]` their probabilities under p; 0 where there is no such token.
    """

    log_p: torch.Tensor
    log_q: torch.Tensor
    log_z: torch.Tensor
    entropy: torch.Tensor
    varentropy: torch.Tensor
    logit_mean: torch.Tensor
    logit_std: torch.Tensor
    top2_ids: torch.Tensor
    top2_probs: torch.Tensor

    @property
    def gap(self) -> torch.Tensor:
        """`[batch]` p(1st) - p(2nd)."""
        return self.top2_probs[:, 0] - self.top2_probs[:, 1]
