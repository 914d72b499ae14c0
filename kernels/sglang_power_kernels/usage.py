"""Counts of calls by backend and function, so that a user can see what is on the hot path."""

from __future__ import annotations

from collections import Counter
from threading import Lock

_calls: Counter[str] = Counter()
_lock = Lock()


def count_call(backend: str, function: str) -> None:
    """Count one call of `function` as served by `backend`."""
    with _lock:
        _calls[f"{backend}.{function}"] += 1


def counters() -> dict[str, int]:
    """Return calls so far in this process, keyed `"<backend>.<function>"`, in alphabetical order."""
    with _lock:
        return dict(sorted(_calls.items()))
