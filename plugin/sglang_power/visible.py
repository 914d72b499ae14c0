"""Text in which every character shows: hidden ones can make a text read as another one.

Used by the pages and by terminal output; knows nothing else of this package.
"""

from __future__ import annotations

import functools
import unicodedata

_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's controls, formats (directions, zero widths), surrogates, and separators of lines."""


@functools.lru_cache(maxsize=4096)
def spelled(character: str) -> str:
    """The character, or its number where it is a control or a direction, e.g. ⟨U+202E⟩."""
    return f"⟨U+{ord(character):04X}⟩" if unicodedata.category(character) in _INVISIBLE else character
