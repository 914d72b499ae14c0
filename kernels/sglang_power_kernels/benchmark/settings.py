"""What a run of the benchmark measures, checked before anything is timed.

Owns the checks; each names the option that is wrong, so that a command line can point at it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..ops import available_backends


class SettingsError(ValueError):
    """A setting is wrong; `option` names it, the message says what it must be and what it was."""

    def __init__(self, option: str, message: str) -> None:
        """Name the option and the mistake."""
        super().__init__(message)
        self.option = option


@dataclass(frozen=True)
class Settings:
    """One run: every batch size with every vocabulary on one device.

    Attributes:
        device: the CPU, or one CUDA device with its index.
        batches: rows per call, each at least 1.
        vocabs: logits per row, each at least 2 (the stock sampler takes the top 2).
        backends: in the order in which they are timed; without "reference" there are no ratios to it.
        rounds: timings of each call, after the warm-up.
        threads: of torch on the CPU.
    """

    device: torch.device
    batches: tuple[int, ...]
    vocabs: tuple[int, ...]
    backends: tuple[str, ...]
    rounds: int
    threads: int

    @classmethod
    def checked(
        cls,
        *,
        batches: Sequence[int],
        vocabs: Sequence[int],
        rounds: int,
        device: str | None = None,
        backends: Sequence[str] | None = None,
        threads: int | None = None,
    ) -> Settings:
        """Return the settings with defaults filled in; raises SettingsError."""
        where = _device(device)
        return cls(
            device=where,
            batches=_sizes("batches", batches, 1),
            vocabs=_sizes("vocabs", vocabs, 2),
            backends=_backends(backends, where),
            rounds=_at_least("rounds", rounds, 1),
            threads=torch.get_num_threads() if threads is None else _at_least("threads", threads, 1),
        )


def _device(name: str | None) -> torch.device:
    """The device by name; None: CUDA where there is one."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise SettingsError("device", f'must be "cpu", "cuda" or "cuda:N", got "{name}"')
    if device.type == "cpu":
        return torch.device("cpu")
    index, count = device.index or 0, torch.cuda.device_count()
    if index >= count:
        raise SettingsError("device", f'"{name}" is not here: torch sees {count} CUDA devices')
    return torch.device("cuda", index)


def _backends(names: Sequence[str] | None, device: torch.device) -> tuple[str, ...]:
    """The backends by name; None: all that can run, but Triton's interpreter, a thousand times slower."""
    usable = available_backends(device)
    if names is None:
        return tuple(name for name in usable if name != "triton" or device.type == "cuda")
    wrong = [name for name in names if name not in usable]
    if wrong or not names:
        raise SettingsError(
            "backends", f'must be among {", ".join(usable)} on {device.type}, got "{" ".join(wrong)}"'
        )
    return tuple(dict.fromkeys(names))


def _sizes(option: str, values: Sequence[int], least: int) -> tuple[int, ...]:
    if not values:
        raise SettingsError(option, "must name at least one size")
    return tuple(_at_least(option, value, least) for value in dict.fromkeys(values))


def _at_least(option: str, value: int, least: int) -> int:
    if value < least:
        raise SettingsError(option, f"must be at least {least}, got {value}")
    return value
