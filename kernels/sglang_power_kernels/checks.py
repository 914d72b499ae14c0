"""The one place where arguments of the public functions are checked.

Owns the error type and every message; knows no backend's arithmetic. `ops` calls it before any backend
runs, so a mistake raises the same error with the same words whatever backend was asked for.

Checks of *values* (ids in range, kappa above 0) read the tensor on the host. They run by default on CPU
tensors only; on CUDA they would stall the stream and run only with `validate=True`.
"""

from __future__ import annotations

import math
from typing import Final

import torch

LOGIT_DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)
INTEGERS: Final = (torch.int64, torch.int32)
REALS: Final = (torch.float64, torch.float32)
NO_TOKEN: Final = -1
"""Stands for "no token": `sample_rows` returns it for a row without a law, `row_statistics` accepts it."""


class KernelInputError(ValueError):
    """An argument of a kernel function is wrong; the message names it, what it was, and the remedy."""


def check_tensor(name: str, value: object, expected: str) -> torch.Tensor:
    """Return `value` if it is a tensor, raise otherwise."""
    if not isinstance(value, torch.Tensor):
        raise KernelInputError(
            f"{name} must be {expected}, got {type(value).__name__}; convert it to a tensor."
        )
    return value


def check_logits(logits: torch.Tensor, validate: bool | None, *, allow_float64: bool) -> bool:
    """Raise unless `logits` is a floating `[batch, vocab]` tensor; return whether value checks shall run."""
    if logits.dim() != 2:
        raise KernelInputError(
            f"logits must have shape [batch, vocab], got {_shape(logits)}; "
            "add the batch dimension with unsqueeze(0) or flatten the leading ones."
        )
    if logits.shape[1] == 0:
        raise KernelInputError(
            f"logits must hold at least one token per row, got {_shape(logits)}; check the vocabulary size."
        )
    if logits.dtype not in LOGIT_DTYPES and not (logits.dtype == torch.float64 and allow_float64):
        raise KernelInputError(
            f"logits must be float32, bfloat16 or float16, got {_dtype(logits)}; "
            'convert them (only backend="reference" takes float64).'
        )
    return logits.device.type == "cpu" if validate is None else validate


def check_ids(logits: torch.Tensor, sampled_ids: torch.Tensor, *, values: bool) -> None:
    """Raise unless `sampled_ids` is an integer `[batch]` tensor of ids in `[0, vocab)` or `NO_TOKEN`."""
    _check_vector("sampled_ids", sampled_ids, logits, INTEGERS)
    vocab = logits.shape[1]
    if values:
        rule = f"sampled_ids must lie in [0, {vocab}), or be {NO_TOKEN} for a row without a token"
        bad = (sampled_ids < NO_TOKEN) | (sampled_ids >= vocab)
        _reject(sampled_ids, bad, rule, "check that the ids come from this vocabulary")


def kappa_tensor(logits: torch.Tensor, kappa: torch.Tensor | float, *, values: bool) -> torch.Tensor:
    """Return `kappa` as `[batch]` float32 on the logits' device; raise unless it is finite and above 0."""
    rule = "kappa must be finite and above 0"
    remedy = "kappa is 1/temperature; take the argmax for temperature 0"
    if isinstance(kappa, (int, float)) and not isinstance(kappa, bool):
        if not (math.isfinite(kappa) and kappa > 0):
            raise KernelInputError(f"{rule}, got {kappa:g}; {remedy}.")
        return torch.full((logits.shape[0],), float(kappa), dtype=torch.float32, device=logits.device)
    vector = _check_vector("kappa", kappa, logits, (torch.float32,))
    if values:
        _reject(vector, ~(torch.isfinite(vector) & (vector > 0)), rule, remedy)
    return vector


def check_bound(name: str, bound: torch.Tensor | None, logits: torch.Tensor) -> None:
    """Raise unless `bound` is None or a `[batch]` float32 tensor of logit bounds."""
    if bound is not None:
        _check_vector(name, bound, logits, (torch.float32,))


def check_uniforms(logits: torch.Tensor, uniforms: torch.Tensor, *, values: bool) -> None:
    """Raise unless `uniforms` is a `[batch]` float64 or float32 tensor in `[0, 1)`."""
    _check_vector("uniforms", uniforms, logits, REALS)
    if values:
        bad = ~((uniforms >= 0) & (uniforms < 1))
        _reject(uniforms, bad, "uniforms must lie in [0, 1)", "draw them with counter_uniforms or torch.rand")


def check_limit(name: str, limit: torch.Tensor | None, logits: torch.Tensor, *, values: bool) -> None:
    """Raise unless `limit` (`top_k`, `top_p` or `min_p`) is None or a per-row tensor of usable numbers."""
    if limit is None:
        return
    _check_vector(name, limit, logits, INTEGERS if name == "top_k" else REALS)
    if values and name == "top_p":
        _reject(limit, torch.isnan(limit), "top_p must be a number", "pass 1 to turn it off")
    if values and name == "min_p":
        _reject(limit, ~(limit <= 1), "min_p must be a number of at most 1", "pass 0 to turn it off")


def check_rows(name: str, rows: torch.Tensor | None, logits: torch.Tensor, *, values: bool) -> None:
    """Raise unless `rows` is None or an int64 vector of distinct rows of the batch, on the logits' device."""
    if rows is None:
        return
    tensor = check_tensor(name, rows, "an int64 [n] tensor of rows")
    if tensor.dtype != torch.int64 or tensor.dim() != 1:
        got = f"{_dtype(tensor)} {_shape(tensor)}"
        raise KernelInputError(f"{name} must be an int64 [n] tensor of rows, got {got}; convert it.")
    if tensor.device != logits.device:
        raise KernelInputError(
            f"{name} must be on the device of logits, {logits.device}, got {tensor.device}; move it there."
        )
    batch = logits.shape[0]
    if values:
        bad = (tensor < 0) | (tensor >= batch)
        _reject(tensor, bad, f"{name} must name rows in [0, {batch})", "pass indices, not a mask")
        if len(set(tensor.tolist())) < len(tensor):
            raise KernelInputError(f"{name} must name each row once, got {tensor.tolist()}; drop repeats.")


def check_backend(
    backend: str, known: tuple[str, ...], usable: tuple[str, ...], device: torch.device
) -> None:
    """Raise unless `backend` is "auto" or one that has the function and can run on `device`."""
    if backend == "auto" or backend in usable:
        return
    if backend not in known:
        names = ", ".join(("auto", *known))
        raise KernelInputError(f'backend must be one of {names}, got "{backend}".')
    names = ", ".join(("auto", *usable))
    raise KernelInputError(
        f'backend "{backend}" cannot run on {device.type} tensors here; use one of {names}.'
    )


def check_counter(seeds: torch.Tensor, positions: torch.Tensor) -> None:
    """Raise unless `seeds` and `positions` are int64 tensors of one `[batch]` shape on one device."""
    for name, value in (("seeds", seeds), ("positions", positions)):
        tensor = check_tensor(name, value, "an int64 [batch] tensor")
        if tensor.dtype != torch.int64 or tensor.dim() != 1:
            got = f"{_dtype(tensor)} {_shape(tensor)}"
            raise KernelInputError(f"{name} must be an int64 [batch] tensor, got {got}; convert it.")
    if seeds.shape != positions.shape or seeds.device != positions.device:
        raise KernelInputError(
            f"positions must match seeds, {_shape(seeds)} on {seeds.device}, "
            f"got {_shape(positions)} on {positions.device}; expand or move one of them."
        )


def _check_vector(
    name: str, value: object, logits: torch.Tensor, dtypes: tuple[torch.dtype, ...]
) -> torch.Tensor:
    words = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    vector = check_tensor(name, value, f"a {words} [batch] tensor")
    batch = logits.shape[0]
    if vector.shape != (batch,):
        raise KernelInputError(
            f"{name} must have shape [{batch}] for logits {_shape(logits)}, got {_shape(vector)}; "
            "pass one value per row."
        )
    if vector.dtype not in dtypes:
        raise KernelInputError(f"{name} must be {words}, got {_dtype(vector)}; convert it.")
    if vector.device != logits.device:
        raise KernelInputError(
            f"{name} must be on the device of logits, {logits.device}, got {vector.device}; move it there."
        )
    return vector


def _reject(vector: torch.Tensor, bad: torch.Tensor, rule: str, remedy: str) -> None:
    if bool(bad.any()):
        row = int(bad.to(torch.uint8).argmax())
        raise KernelInputError(f"{rule}, got {vector[row].item():g} in row {row}; {remedy}.")


def _shape(tensor: torch.Tensor) -> str:
    return str(list(tensor.shape))


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
