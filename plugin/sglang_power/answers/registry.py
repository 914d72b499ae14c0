"""Every equivalence by its name: the built-in ones and those of the group `sglang_power.equivalences`.

An entry point's name is the equivalence's; it loads a callable (a, b) -> bool or `Verdict`, plain or
asynchronous, or an object with `Relation.same` and, where it cannot read every answer, `Reads.unreadable`.
"""

from __future__ import annotations

import functools

from sglang_power.answers.equivalence import CHOICE, EXACT, NORMALISED, NUMBER, FunctionRelation, Relation
from sglang_power.answers.judging import LLM
from sglang_power.answers.mathematics import Mathematics, require_extra
from sglang_power.errors import ConfigError, RequestError, UnsupportedError
from sglang_power.extensions import extensions

ENTRY_POINTS = "sglang_power.equivalences"

MATH = "math"

RESERVED = frozenset({LLM})
"""Names of relations that need the served model; the host makes those."""


@functools.cache
def equivalences() -> dict[str, Relation]:
    """Name -> relation.

    Raises:
        ConfigError: an entry point that cannot be loaded, is no relation, or takes a name that is in use.
    """
    found: dict[str, Relation] = {
        "exact": EXACT,
        "normalised": NORMALISED,
        "number": NUMBER,
        "choice": CHOICE,
        MATH: Mathematics(),
    }
    for name, named, loaded in extensions(ENTRY_POINTS):
        if isinstance(loaded, type) or not (isinstance(loaded, Relation) or callable(loaded)):
            raise ConfigError(f"{named}: neither a callable (a, b) nor an object with `same`")
        if name in found.keys() | RESERVED:
            raise ConfigError(f"{named}: the name {name!r} is in use; choose another")
        found[name] = loaded if isinstance(loaded, Relation) else FunctionRelation(loaded)
    return found


def equivalence(name: str, field: str = "equivalence") -> Relation:
    """The relation that a request names.

    Args:
        name: what it wrote.
        field: where it wrote it.

    Raises:
        RequestError: there is none of that name; UnsupportedError: "math" without the extra, or "llm", which
            the host makes for each request.
    """
    known = equivalences()
    if name in RESERVED:
        raise UnsupportedError(field, name, "asks the served model", "Use it in a request to a server")
    if name not in known:
        names = ", ".join([*known, *RESERVED])
        raise RequestError(field, name, "unknown equivalence", f"Use one of: {names}")
    if name == MATH:
        require_extra()
    return known[name]
