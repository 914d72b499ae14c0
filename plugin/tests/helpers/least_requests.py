"""The least that every sampler's request must say."""

from __future__ import annotations

from typing import Any

REQUIRED: dict[str, dict[str, Any]] = {
    "entropix": {"entropy_threshold": 0.5, "varentropy_threshold": 0.5},
    "kl_guided": {"ids_without": [1]},
    "temperature": {"value": 1.0},
    "top_k": {"k": 2},
    "top_p": {"p": 0.5},
    "min_p": {"p": 0.5},
}
