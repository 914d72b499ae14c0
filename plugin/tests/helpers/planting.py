"""Puts a string at any place of a JSON document: for pages that must show hostile strings as text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

Place = tuple[str | int, ...]
"""Keys and indices from the top; a place that ends in KEY is the key before it."""

KEY = "key:"


def places(value: Any, has_free_keys: Callable[[Place], bool], place: Place = ()) -> Iterator[Place]:
    """Where strings stand.

    Args:
        value: JSON.
        has_free_keys: whether the keys of the object at a place are strings that somebody chose.
        place: of the value.
    """
    if isinstance(value, str):
        yield place
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from places(item, has_free_keys, (*place, index))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, has_free_keys, (*place, key))
            if has_free_keys(place):
                yield (*place, key, KEY)


def planted(content: dict[str, Any], place: Place, text: str) -> dict[str, Any]:
    """A copy of the document with a string at one place."""
    changed: dict[str, Any] = json.loads(json.dumps(content))
    is_key = place[-1] == KEY
    *above, last = place[:-1] if is_key else place
    at: Any = changed
    for key in above:
        at = at[key]
    if is_key:
        at[text] = at.pop(last)
    else:
        at[last] = text
    return changed
