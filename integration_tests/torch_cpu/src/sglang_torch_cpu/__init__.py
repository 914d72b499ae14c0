"""Entry point of the plain-CPU platform: decides whether SGLang gets it, and names the class.

Owns the decision only; the class lives in `sglang_torch_cpu.platform`, which SGLang imports afterwards.
Knows nothing of power sampling.
"""

from __future__ import annotations

import torch

__all__ = ["PLATFORM", "activate"]

PLATFORM = "sglang_torch_cpu.platform:TorchCpuPlatform"


def activate() -> str | None:
    """Tell SGLang's platform discovery which class to use.

    Returns:
        The class as `"module:Class"`, or None where PyTorch sees a CUDA (or ROCm) device: SGLang then selects
        its own GPU platform, so one command line serves both kinds of machine.
    """
    return None if torch.cuda.is_available() else PLATFORM
