"""YAML files that people write: read with positions, so that every mistake is told with file, line and field.

Used by `server.config` and `experiments`; knows no model of a file.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails, to_json

from sglang_power.errors import ConfigError
from sglang_power.fields import CONFLICT

MAX_VALUES = 20_000
"""Of one file, what an alias stands for counted as often as it stands: eight lines could say a billion."""

MAX_SHOWN = 200
"""Characters of a wrong value in an error."""

Loc: TypeAlias = Sequence[int | str]
"""The way to a value: keys, and indices of lists."""


@dataclass(frozen=True)
class YamlFile:
    """What a file says, and where.

    Args:
        path: of the file.
        root: its nodes; None where it is empty.
        values: the same as plain values; an empty file is an empty mapping.
    """

    path: Path
    root: yaml.Node | None
    values: Any

    def json(self) -> bytes:
        """The same as JSON: strict models take a list for a tuple only from there.

        Raises:
            ConfigError: a value that JSON cannot say: bytes, half of a surrogate pair, deep nesting.
        """
        try:
            return to_json(self.values, inf_nan_mode="constants")
        except ValueError as error:
            raise ConfigError(f"{self.path}: {error}") from error

    def at(self, loc: Loc, problem: str) -> ConfigError:
        """The error that points at a value, or at the deepest part of its way that the file has."""
        field = ".".join(str(part) for part in loc)
        return ConfigError(f"{self.path}, line {_line(self.root, loc)}, field '{field}': {problem}")

    def refused(self, error: ValidationError) -> ConfigError:
        """The error that points at the first value that a model refused."""
        first = error.errors(include_url=False)[0]
        if first["type"] != CONFLICT:
            return self.at(_written(self.root, first["loc"]), problem_of(first))
        told = first["ctx"]
        loc = _written(self.root, (*first["loc"], *loc_of(told["field"])))
        return self.at(loc, f"{told['problem']}. {told['hint']}")


def read_yaml(path: Path) -> YamlFile:
    """Read one file.

    Raises:
        ConfigError: unreadable, not YAML, a key twice, a value that contains itself, too many values.
    """
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        file = YamlFile(path, root, {})
        _check(file, root, (), (), itertools.count(1))
        values = None if root is None else loader.construct_document(root)
    except (OSError, ValueError, yaml.YAMLError) as error:  # a date of month 13 is a ValueError
        raise ConfigError(f"{path}: {error}") from error
    except (AttributeError, LookupError, RecursionError) as error:  # PyYAML's, of tags that do not fit
        raise ConfigError(f"{path}: cannot be read as YAML ({error!r})") from error
    return file if values is None else YamlFile(path, root, values)


def loc_of(field: str) -> Loc:
    """The way that a dotted field is: "arms.0.weight"."""
    return [int(part) if part.isdecimal() else part for part in field.split(".")]


def problem_of(error: ErrorDetails) -> str:
    """What pydantic found wrong, with the value unless it is what holds the missing one."""
    if error["type"] == "missing":
        return error["msg"]
    shown = repr(error["input"])
    return f"{error['msg']}, got {shown if len(shown) <= MAX_SHOWN else shown[:MAX_SHOWN] + '...'}"


def _check(
    file: YamlFile,
    node: yaml.Node | None,
    loc: tuple[int | str, ...],
    around: tuple[int, ...],
    visits: Iterator[int],
) -> None:
    """YAML forbids duplicate keys; PyYAML keeps the last one without a word. Aliases may form a circle."""
    if next(visits) > MAX_VALUES:
        raise file.at(
            loc[:1], f"more than {MAX_VALUES} values in this file; an alias counts as what it stands for"
        )
    if id(node) in around:
        raise file.at(loc, "contains itself")
    seen: set[object] = set()
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode) and key.value in seen:
            raise _duplicate(file, key, loc)
        seen.add(str(key.value))
    for part, (_, child) in _children(node).items():
        _check(file, child, (*loc, part), (*around, id(node)), visits)


def _duplicate(file: YamlFile, key: yaml.Node, loc: Loc) -> ConfigError:
    field = ".".join(str(part) for part in (*loc, key.value))
    return ConfigError(f"{file.path}, line {key.start_mark.line + 1}, field '{field}': duplicate key")


def _line(node: yaml.Node | None, loc: Loc) -> int:
    line = 1 if node is None else node.start_mark.line + 1
    for part in loc:
        children = _children(node)
        if part not in children:
            break
        key, node = children[part]
        line = key.start_mark.line + 1
    return line


def _written(node: yaml.Node | None, loc: Loc) -> Loc:
    """Without the parts that are pydantic's own: it puts the tag of a union's member into the way."""
    kept: list[int | str] = []
    for i, part in enumerate(loc):
        children = _children(node)
        if part in children:
            node = children[part][1]
        elif i < len(loc) - 1:
            continue
        kept.append(part)
    return kept


def _children(node: yaml.Node | None) -> dict[int | str, tuple[yaml.Node, yaml.Node]]:
    """Key or index -> (where it is written, its value)."""
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): (key, value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return {i: (value, value) for i, value in enumerate(node.value)}
    return {}
