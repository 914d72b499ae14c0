"""The plain-CPU platform class: SGLang's CPU device operations, marked as out of tree.

Owns the answers that differ from SGLang's in-tree CPU platform. On an out-of-tree platform SGLang dispatches
every fused operation to its `forward_native`, which needs PyTorch only.
"""

from __future__ import annotations

import torch
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import PlatformCapabilities, SRTPlatform

__all__ = ["TorchCpuPlatform"]


class TorchCpuPlatform(CpuDeviceMixin, SRTPlatform):  # type: ignore[misc]  # SGLang's classes are untyped
    """Any CPU, with PyTorch operations only: no Triton, no graphs, no compiled SGLang kernels."""

    _enum = PlatformEnum.OOT
    device_name = "cpu"
    device_type = "cpu"
    capabilities = PlatformCapabilities()

    def get_device(self, device_id: int | None = None) -> torch.device | str:
        """Return the CPU device, or its name to a caller that names no rank.

        SGLang 0.5.23 fills a missing `--device` with `get_device(None)` and calls `.split(":")` on it; that
        needs a string. With it `--device` may be left out, as on a GPU machine.
        """
        return self.device_type if device_id is None else torch.device(self.device_type)

    def get_default_attention_backend(self) -> str:
        """Name the attention backend written in plain PyTorch."""
        return "torch_native"

    def get_dispatch_key_name(self) -> str:
        """Select `forward_native` in SGLang's fused operations."""
        return "native"

    def is_pin_memory_available(self, device: torch.device | None = None) -> bool:
        """Report that there is no device to pin host memory for."""
        del device
        return False
