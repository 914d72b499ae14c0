"""Nothing of a request becomes a program or a path: what the code that sees requests may not call.

Read off the syntax trees of every module of the serving process, so that a new one is held to it, too; the
fuzz tests watch the same on a real server (`make fuzz`). What else a client can do is tested where it is
done: patterns that take for ever (test_answers_extraction), hostile strings on pages (viewer/,
experiments/test_ab_page), the key of feedback (test_ab_feedback), names of units (below, and test_ab_log).
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import sglang_power
from sglang_power.experiments.records import unit_hash

ROOT = Path(sglang_power.__file__).parent

COMMANDS = ("evaluation", "serve_benchmark", "frontend", "viewer")
"""Rooms of commands and clients: no server imports them."""

SEES_REQUESTS = (
    *("algorithms", "answers", "policies", "request", "rewards", "samplers", "engines"),
    *("sglang_host/tokenizer", "sglang_host/scheduler", "sglang_host/entry.py"),
)
"""Where values of requests go."""

PROGRAMS = {
    "pickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "subprocess",
    "ctypes",
    "runpy",
    "code",
    "pty",
}
"""Modules that make programs of data, or run them."""

CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "import_module",
    "system",
    "popen",
    "unsafe_load",
    "full_load",
}
"""Functions that do; `compile` of a pattern library is none."""

FILES = {
    "open",
    "read_text",
    "write_text",
    "read_bytes",
    "write_bytes",
    "unlink",
    "mkdir",
    "rmdir",
    "rmtree",
    "chmod",
}
"""Calls that touch files."""

EXPLAINED = {
    ("sglang_host/hooks.py", "import_module"),  # targets of HOOKS, which are written there
    ("answers/mathematics.py", "read_text"),  # /proc/self/statm, for the limit on memory
}
"""Uses that no request reaches."""


def serving() -> list[Path]:
    """Every module that a server may import."""
    return [
        path
        for path in sorted(ROOT.rglob("*.py"))
        if path.relative_to(ROOT).parts[0] not in COMMANDS and not path.stem.endswith("cli")
    ]


def programs(source: str) -> Iterator[str]:
    """What in a module makes a program of data, or runs one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
            )
            yield from (name for name in names if name.split(".")[0] in PROGRAMS)
        if isinstance(node, ast.Call) and (name := _called(node)) in CALLS and not _is_harmless(node):
            yield name


def files(source: str) -> Iterator[str]:
    """What in a module touches a file."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or (name := _called(node)) not in FILES:
            continue
        if name != "open" or isinstance(node.func, ast.Name):  # trees open nodes, too
            yield name


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _is_harmless(node: ast.Call) -> bool:
    """`re.compile` and `regex.compile`, and the import of a module that is named there."""
    owner = node.func.value if isinstance(node.func, ast.Attribute) else None
    if isinstance(owner, ast.Name) and owner.id in ("re", "regex"):
        return True
    return _called(node) == "import_module" and all(isinstance(each, ast.Constant) for each in node.args)


@pytest.mark.parametrize("path", serving(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_of_a_server_makes_programs_of_data(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    found = {each for each in programs(path.read_text()) if (name, each) not in EXPLAINED}
    assert found == set()


@pytest.mark.parametrize("room", SEES_REQUESTS)
def test_no_module_that_sees_requests_touches_files(room: str) -> None:
    place = ROOT / room
    modules = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    assert modules
    found = {(str(path.relative_to(ROOT)), each) for path in modules for each in files(path.read_text())}
    assert found - EXPLAINED == set()


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from subprocess import run",
        "eval(x)",
        "compile(x, 'a', 'exec')",
        "import os\nos.system(x)",
        "yaml.unsafe_load(x)",
        "import importlib\nimportlib.import_module(x)",
    ],
)
def test_control_what_makes_a_program_is_found(source: str) -> None:
    assert list(programs(source))


def test_control_patterns_are_no_programs_and_files_are_found() -> None:
    assert list(programs("re.compile(x)\nregex.compile(x)")) == []
    assert list(files("open(x)\nPath(x).read_text()")) == ["open", "read_text"]


def test_a_unit_is_known_by_a_hash_that_needs_the_key() -> None:
    name = "somebody@example.org"
    first, other = unit_hash(name, b"a" * 32), unit_hash(name, b"b" * 32)
    assert first != other
    assert first == unit_hash(name, b"a" * 32)
    assert name not in json.dumps([first, other])
