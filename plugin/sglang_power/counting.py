"""Metrics live in files of their own: a disk without room costs a count, never an answer. A leaf.

With several processes prometheus_client keeps its values in mapped files, which grow with every new label.
Where they cannot, it raises OSError, and then, its idea of their size being wrong, IndexError.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import ParamSpec

logger = logging.getLogger("sglang_power")

P = ParamSpec("P")


def tolerant(observe: Callable[P, None]) -> Callable[P, None]:
    """Return the same observation of a metric, which gives up where its file cannot be written."""

    @functools.wraps(observe)
    def tolerantly(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            observe(*args, **kwargs)
        except (OSError, IndexError) as error:
            _tell(type(error).__name__, str(error))

    return tolerantly


@functools.cache
def _tell(kind: str, what: str) -> None:
    """Log each trouble once: every answer has it as long as it lasts."""
    logger.error("metrics are not counted, their files cannot be written: %s: %s", kind, what)
