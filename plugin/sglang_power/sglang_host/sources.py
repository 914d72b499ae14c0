"""Whether SGLang's code is still what each hook was written against, so that an upgrade is a review.

`hook_sources.json` holds, per version of SGLang, a digest of the source of every hook's target; blank lines,
indentation and lines of comment do not count. Reads files and imports nothing of SGLang, so it serves an
unpacked wheel as well.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from sglang_power.errors import ConfigError

TABLE = Path(__file__).with_name("hook_sources.json")
HOST = "sglang"
"""The package that is looked at; a hook on another one is its own affair."""

Digests = Mapping[str, str | None]
"""Of the sources of hooks' targets; None where a version has no such target."""


@dataclass(frozen=True)
class Review:
    """What an upgrade has to look at.

    Args:
        version: of SGLang that was looked at.
        against: the recorded version that it was compared with: itself, or else the newest one.
        changed: targets whose source is another one.
        gone, new: targets that only the recorded version has, and those that only this one has.
    """

    version: str
    against: str
    changed: tuple[str, ...]
    gone: tuple[str, ...]
    new: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Whether every hook stands on the code that it was written against."""
        return not (self.changed or self.gone or self.new)

    def lines(self) -> Iterator[str]:
        """Yield what was found, line by line."""
        known = "recorded" if self.version == self.against else f"not recorded; against {self.against}"
        yield f"SGLang {self.version} ({known}): " + (
            "nothing changed" if self.clean else "review these hooks"
        )
        for word, targets in (("changed", self.changed), ("gone", self.gone), ("new", self.new)):
            yield from (f"  {word:8} {target}" for target in targets)


def digests(targets: list[str], root: Path) -> dict[str, str | None]:
    """Return the digest of each target's source.

    Args:
        targets: dotted paths; those outside SGLang are left out.
        root: the folder that holds the package `sglang`.

    Raises:
        ConfigError: there is no such package.
    """
    if not (root / HOST / "__init__.py").exists():
        raise ConfigError(f"{root}: no package {HOST!r} lies there; name the folder that holds it")
    return {target: _digest(target, root) for target in sorted(targets) if target.startswith(f"{HOST}.")}


def reviewed(found: Digests, version: str, table: Mapping[str, Digests]) -> Review:
    """Compare the sources of a version with those that the hooks were written against.

    Args:
        found: of this version.
        version: its number.
        table: of every recorded version, at least one.
    """
    against = version if version in table else max(table, key=Version)
    known = table[against]
    both = [target for target in found if found[target] and known.get(target)]
    return Review(
        version,
        against,
        changed=tuple(target for target in both if found[target] != known[target]),
        gone=tuple(target for target in found if known.get(target) and not found[target]),
        new=tuple(target for target in found if found[target] and not known.get(target)),
    )


def recorded(path: Path = TABLE) -> dict[str, dict[str, str | None]]:
    """Return the table of recorded versions."""
    table: dict[str, dict[str, str | None]] = json.loads(path.read_text())
    return table


def record(found: Digests, version: str, path: Path = TABLE) -> None:
    """Write a version into the table: its hooks were reviewed."""
    table = {**(recorded(path) if path.exists() else {}), version: dict(found)}
    ordered = {key: table[key] for key in sorted(table, key=Version)}
    path.write_text(json.dumps(ordered, indent=1) + "\n")


def _digest(target: str, root: Path) -> str | None:
    found = _module_of(target.split("."), root)
    if found is None:
        return None
    path, names = found
    text = path.read_text()
    node: ast.AST | None = ast.parse(text)
    for name in names:
        node = None if node is None else _member(node, name)
    return None if node is None else hashlib.sha256(_code(text, node).encode()).hexdigest()[:16]


def _code(text: str, node: ast.AST) -> str:
    """The lines of a definition, its decorators included; the same whatever version of Python reads them."""
    decorators = [each.lineno for each in getattr(node, "decorator_list", [])]
    first, last = min([getattr(node, "lineno", 1), *decorators]), getattr(node, "end_lineno", None)
    lines = [line.strip() for line in text.splitlines()[first - 1 : last]]
    return "\n".join(line for line in lines if line and not line.startswith("#"))


def _module_of(parts: list[str], root: Path) -> tuple[Path, list[str]] | None:
    """The file of the longest module that a dotted path begins with, and the names behind it."""
    for length in range(len(parts) - 1, 0, -1):
        base = root.joinpath(*parts[:length])
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.exists():
                return path, parts[length:]
    return None


def _member(node: ast.AST, name: str) -> ast.AST | None:
    """A function or class of a module or class; the last one, where there are several of the name."""
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = [
        each for each in getattr(node, "body", []) if isinstance(each, definitions) and each.name == name
    ]
    return found[-1] if found else None
