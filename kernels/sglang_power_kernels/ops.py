"""The public functions: check the arguments once, choose a backend, count the call.

Owns dispatch. Knows which backends exist and where each can run; their arithmetic is in a file each,
imported on first use, so that this package imports without a GPU, nvcc, Triton or FlashInfer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

import torch

from . import checks, usage
from .greedy import Draw, Law, drawn, drawn_beside_greedy
from .records import RowStatistics

# Backend and its module, in the order in which "auto" prefers them where they can run. FlashInfer's radix
# top-k and top-p bound a row on CUDA. Its samplers draw their own noise and need the logits masked and scaled
# in memory, so "auto" samples with what inverts the given uniforms: one pass, and a draw that repeats in any
# batch slot.
STATISTICS: Final = {"triton": "triton_backend", "torch": "torch_backend", "reference": "reference"}
SAMPLING: Final = {
    "triton": "triton_backend",
    "flashinfer": "flashinfer_backend",
    "torch": "torch_backend",
    "reference": "reference",
}
TRUNCATION: Final = {"flashinfer": "flashinfer_backend", "torch": "truncation", "reference": "reference"}


def available_backends(device: torch.device | str) -> tuple[str, ...]:
    """Return the backends that can run on `device`, in the order in which "auto" prefers them for sampling.

    "reference" and "torch" run anywhere; "triton" and "flashinfer" need a CUDA device and the library.
    "triton" is also listed for the CPU under `TRITON_INTERPRET=1` (for tests: a thousand times slower), and
    chosen there only by name.

    >>> available_backends("cpu")
    ('torch', 'reference')
    """
    return _usable(SAMPLING, torch.device(device))


def row_statistics(
    logits: torch.Tensor,
    sampled_ids: torch.Tensor,
    *,
    kappa: torch.Tensor | float,
    keep_min: torch.Tensor | None = None,
    keep_max: torch.Tensor | None = None,
    backend: str = "auto",
    validate: bool | None = None,
) -> RowStatistics:
    """Return the statistics of each row of logits and of the token sampled from it.

    With p = softmax(x) over a row x, and q proportional to p^kappa on the kept set `{v: keep_min <= x_v <=
    keep_max}`: `log_p = x_id - lse(x)`, `log_q = kappa x_id - lse_kept(kappa x)`, `log_z = lse(kappa x) -
    kappa lse(x)` (over the whole vocabulary), `H = -sum p log p`, `varentropy = sum p (log p + H)^2`.
    Untruncated, the importance weight of a token for the target p^alpha is `alpha log_p - log_q = (alpha -
    kappa) log_p + log_z` (the per-token factor of Karan and Du, arXiv 2510.14901, in log space).

    Args:
        logits: `[batch, vocab]` float32, bfloat16 or float16 (float64 for `backend="reference"`), any
            strides; -inf is a token without probability.
        sampled_ids: `[batch]` int64 or int32, same device; -1 stands for no token and gives NaN.
        kappa: inverse temperature of the proposal, above 0: a number, or `[batch]` float32, same device.
        keep_min: `[batch]` float32 logits, inclusive lower bound of the kept set; None or NaN cuts nothing.
        keep_max: `[batch]` float32 logits, inclusive upper bound of the kept set; None or NaN cuts nothing.
        backend: "auto", or one of `available_backends(logits.device)` but "flashinfer", which has no
            statistics.
        validate: check values on the host, which synchronises; None: on CPU tensors only.

    Returns:
        `RowStatistics`, in nats; NaN in a row without a law (see there).

    Raises:
        KernelInputError: a wrong shape, dtype, device or backend; with value checks, ids or kappa out of
            range.

    >>> row_statistics(torch.tensor([[0.0, 0.0]]), torch.tensor([1]), kappa=4.0).log_p.exp()
    tensor([0.5000])
    """
    name = _choose(STATISTICS, backend, logits)
    values = checks.check_logits(logits, validate, allow_float64=name == "reference")
    checks.check_ids(logits, sampled_ids, values=values)
    tempering = checks.kappa_tensor(logits, kappa, values=values)
    checks.check_bound("keep_min", keep_min, logits)
    checks.check_bound("keep_max", keep_max, logits)
    usage.count_call(name, "row_statistics")
    statistics: RowStatistics = _load(STATISTICS[name]).row_statistics(
        logits, sampled_ids, kappa=tempering, keep_min=keep_min, keep_max=keep_max
    )
    return statistics


def sample_rows(
    logits: torch.Tensor,
    *,
    kappa: torch.Tensor | float,
    uniforms: torch.Tensor,
    keep_min: torch.Tensor | None = None,
    keep_max: torch.Tensor | None = None,
    greedy: torch.Tensor | None = None,
    backend: str = "auto",
    validate: bool | None = None,
) -> torch.Tensor:
    """Draw one token per row from q, proportional to p^kappa on `{v: keep_min <= x_v <= keep_max}`.

    By inverse CDF: the first token whose cumulated mass exceeds `uniform * total`, never a token of
    probability 0. `backend="flashinfer"` draws from the same law with FlashInfer's own noise, seeded per
    row from the uniform's bits.

    Args:
        logits: `[batch, vocab]` float32, bfloat16 or float16 (float64 for `backend="reference"`), any
            strides.
        kappa: inverse temperature above 0: a number, or `[batch]` float32, same device.
        uniforms: `[batch]` float64 or float32 in [0, 1), for example from `counter_uniforms`.
        keep_min: `[batch]` float32 logits, inclusive lower bound of the kept set; None or NaN cuts nothing.
        keep_max: `[batch]` float32 logits, inclusive upper bound of the kept set; None or NaN cuts nothing.
        greedy: `[n]` int64, same device: distinct rows that take their most likely token, whatever kappa, the
            bounds and the uniforms say there; None: none.
        backend: "auto", or one of `available_backends(logits.device)`.
        validate: check values on the host, which synchronises; None: on CPU tensors only.

    Returns:
        `[batch]` int64 ids; -1 for a row without a law (NaN or +inf logit, nothing finite) or an empty kept
        set.

    Raises:
        KernelInputError: a wrong shape, dtype, device or backend; with value checks, uniforms, kappa or
            greedy rows out of range.

    >>> sample_rows(torch.tensor([[0.0, 0.0]]), kappa=1.0, uniforms=torch.tensor([0.75]))
    tensor([1])
    """
    name = _choose(SAMPLING, backend, logits)
    values = checks.check_logits(logits, validate, allow_float64=name == "reference")
    tempering = checks.kappa_tensor(logits, kappa, values=values)
    checks.check_uniforms(logits, uniforms, values=values)
    checks.check_bound("keep_min", keep_min, logits)
    checks.check_bound("keep_max", keep_max, logits)
    checks.check_rows("greedy", greedy, logits, values=values)
    usage.count_call(name, "sample_rows")
    draw: Draw = _load(SAMPLING[name]).sample_rows
    law = Law(tempering, uniforms, keep_min, keep_max)
    return drawn(draw, logits, law) if greedy is None else drawn_beside_greedy(draw, logits, law, greedy)


def truncation_bounds(
    logits: torch.Tensor,
    *,
    kappa: torch.Tensor | float,
    top_k: torch.Tensor | None = None,
    top_p: torch.Tensor | None = None,
    min_p: torch.Tensor | None = None,
    backend: str = "auto",
    validate: bool | None = None,
) -> torch.Tensor:
    """Return the lower logit bound that applies top-k, top-p and min-p to softmax(kappa * logits), in joint
    order.

    Joint: each limit is measured on the whole tempered law q and the strictest bound wins. `top_k`: the
    k-th largest logit. `top_p`: the largest bound whose kept set has `sum q >= p`. `min_p`: `q(v) >= min_p
    * max q`, that is `max + log(min_p) / kappa`. The kept set is `logit >= bound`: ties with the bound are
    all kept. The most likely token is always kept.

    Args:
        logits: `[batch, vocab]` float32, bfloat16 or float16 (float64 for `backend="reference"`), any
            strides.
        kappa: inverse temperature above 0: a number, or `[batch]` float32, same device.
        top_k: `[batch]` int64 or int32; off in a row where it is <= 0 or >= vocab.
        top_p: `[batch]` float32 or float64; off in a row where it is >= 1.
        min_p: `[batch]` float32 or float64, at most 1; off in a row where it is <= 0.
        backend: "auto", "torch", "reference" or, on CUDA, "flashinfer" (its radix top-k and top-p).
        validate: check values on the host, which synchronises; None: on CPU tensors only.

    Returns:
        `[batch]` float32 `keep_min` for `row_statistics` and `sample_rows`; -inf where nothing is cut and
        in a row without a law.

    Raises:
        KernelInputError: a wrong shape, dtype, device or backend; with value checks, a NaN limit, `min_p`
            above 1, kappa out of range.

    >>> truncation_bounds(torch.tensor([[3.0, 1.0, 2.0]]), kappa=1.0, top_k=torch.tensor([2]))
    tensor([2.])
    """
    name = _choose(TRUNCATION, backend, logits)
    values = checks.check_logits(logits, validate, allow_float64=name == "reference")
    tempering = checks.kappa_tensor(logits, kappa, values=values)
    checks.check_limit("top_k", top_k, logits, values=values)
    checks.check_limit("top_p", top_p, logits, values=values)
    checks.check_limit("min_p", min_p, logits, values=values)
    usage.count_call(name, "truncation_bounds")
    bounds: torch.Tensor = _load(TRUNCATION[name]).truncation_bounds(
        logits, kappa=tempering, top_k=top_k, top_p=top_p, min_p=min_p
    )
    return bounds


def _choose(modules: Mapping[str, str], backend: str, logits: torch.Tensor) -> str:
    """The backend to run: as named, or the first usable one (on a CPU never the Triton interpreter)."""
    device = checks.check_tensor("logits", logits, "a floating [batch, vocab] tensor").device
    usable = _usable(modules, device)
    checks.check_backend(backend, tuple(modules), usable, device)
    if backend != "auto":
        return backend
    return next(name for name in usable if name != "triton" or device.type == "cuda")


def _usable(modules: Mapping[str, str], device: torch.device) -> tuple[str, ...]:
    return tuple(name for name in modules if _runs_on(name, device.type))


def _runs_on(name: str, device_type: str) -> bool:
    if name in ("reference", "torch"):
        return True
    if name == "triton" and device_type == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1" and _installed(name)
    return device_type == "cuda" and _installed(name)


@cache
def _installed(name: str) -> bool:
    return find_spec(name) is not None


@cache
def _load(module: str) -> Any:
    return import_module(f".{module}", __package__)
