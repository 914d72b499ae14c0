"""The plain-CPU platform class: SGLang's CPU device operations, marked as out of tree.

Owns the answers that differ from SGLang's in-tree CPU platform. On an out-of-tree platform SGLang dispatches
every fused operation to its `forward_native`, which needs PyTorch only.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import CpuArchEnum, PlatformEnum
from sglang.srt.platforms.interface import PlatformCapabilities, SRTPlatform

__all__ = ["TorchCpuPlatform"]

ATTENTION = "torch_cpu"


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
        """Name the attention backend that `init_backend` registers."""
        return ATTENTION

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Put this platform's attention where SGLang has put its own default for CPUs.

        Another backend that a command line names is kept: `--attention-backend torch_native` on x86.
        """
        default = "torch_native" if self.cpu_arch == CpuArchEnum.ARM else "intel_amx"
        if server_args.attention_backend in (None, default):
            server_args.attention_backend = ATTENTION

    def init_backend(self) -> None:
        """Register the attention backend; SGLang calls this in every worker."""
        from sglang.srt.layers.attention.attention_registry import register_attention_backend

        register_attention_backend(ATTENTION)(_attention)

    def get_dispatch_key_name(self) -> str:
        """Select `forward_native` in SGLang's fused operations."""
        return "native"

    def is_pin_memory_available(self, device: torch.device | None = None) -> bool:
        """Report that there is no device to pin host memory for."""
        del device
        return False


def _attention(model_runner: Any) -> Any:
    from sglang_torch_cpu.attention import BatchedAttention

    return BatchedAttention(model_runner)
