"""SGLang's own sampler, operation by operation, as the yardstick.

Owns a replica of `layers/sampler.py` of SGLang 0.5.23 for rows with a temperature and no truncation, where
SGLang uses torch on every device: divide by the temperature, softmax, copy back, the exponential race of
`sampling_from_probs_torch`; with logprobs also log, clamp, top-2 and the gather of the sampled token. This
package must not import SGLang; a test of the plugin compares the replica with it.
"""

from __future__ import annotations

from typing import Final

import torch

SOURCE: Final = "the torch operations of sglang 0.5.23's sampler (replica)"


def stock(logits: torch.Tensor, buffer: torch.Tensor, temperatures: torch.Tensor) -> torch.Tensor:
    """SGLang's simple case without logprobs; out of place where SGLang divides in place, same traffic.

    Args:
        logits: `[batch, vocab]` float32.
        buffer: like `logits`; takes the probabilities.
        temperatures: `[batch, 1]` float32.

    Returns:
        `[batch]` int32 ids.
    """
    torch.div(logits, temperatures, out=buffer)
    buffer[:] = torch.softmax(buffer, dim=-1)
    return exponential_race(buffer)


def stock_logprobs(logits: torch.Tensor, buffer: torch.Tensor, temperatures: torch.Tensor) -> torch.Tensor:
    """SGLang's simple case with the sampled token's logprob and the top 2; arguments as in `stock`."""
    ids = stock(logits, buffer, temperatures)
    logprobs = torch.log(buffer).clamp_(min=torch.finfo(buffer.dtype).min)
    logprobs.topk(2, dim=-1)
    return logprobs[torch.arange(len(ids), device=ids.device), ids]


def exponential_race(probs: torch.Tensor) -> torch.Tensor:
    """What `sampling_from_probs_torch` does by default: `[batch, vocab]` float32 to `[batch]` int32 ids."""
    noise = torch.empty_like(probs).exponential_(1.0).clamp_min_(torch.finfo(torch.float32).tiny)
    return (probs / noise).argmax(dim=-1).to(torch.int32)
