"""Imports go one way, and SGLang is imported in two places: read from the source, nothing is executed.

types <- algorithms <- engines; types <- answers, rewards, policies <- request <- samplers <- sglang_host;
request <- server, frontend; within the host, `scheduler` and `tokenizer` do not know each other, and
`experiments` stands on `tokenizer`. Only `sglang_host` may import
SGLang's server, and only `frontend/_lang.py` its language.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sglang_power

ROOT = Path(sglang_power.__file__).parent
PACKAGE = "sglang_power"

ALLOWED: dict[str, set[str]] = {
    "types": set(),
    "errors": set(),
    "rng": {"types"},
    "algorithms": {"types", "errors", "rng", "algorithms"},
    "engines": {"types", "errors", "rng", "algorithms", "clock", "fields", "engines"},
    "clock": set(),
    "counting": set(),
    "fields": set(),
    "routes": set(),
    "gateways": set(),
    "extensions": {"errors"},
    "yaml_files": {"errors", "fields"},
    "policies": {"types", "errors", "fields", "extensions", "policies"},
    "answers": {"types", "errors", "fields", "rng", "extensions", "answers"},
    "request": {
        "types",
        "errors",
        "rng",
        "algorithms",
        "answers",
        "extensions",
        "fields",
        "policies",
        "request",
    },
    "rewards": {"errors", "fields", "extensions", "rewards"},
    "samplers": {
        "clock",
        "types",
        "errors",
        "rng",
        "algorithms",
        "answers",
        "policies",
        "request",
        "rewards",
        "samplers",
    },
    "server": {"counting", "errors", "experiments", "request", "rewards", "server", "yaml_files"},
    "frontend": {
        "types",
        "errors",
        "rng",
        "algorithms",
        "answers",
        "engines",
        "fields",
        "gateways",
        "reports",
        "request",
        "routes",
        "frontend",
    },
    "reports": {"errors"},
    "prompt_files": {"errors"},
    "diagnosis": {
        "types",
        "errors",
        "rng",
        "algorithms",
        "engines",
        "fields",
        "prompt_files",
        "reports",
        "samplers",
        "diagnosis",
    },
    "visible": set(),
    "static_pages": set(),
    "viewer": {"errors", "visible", "viewer"},
    "evaluation": {
        "types",
        "errors",
        "answers",
        "fields",
        "reports",
        "static_pages",
        "visible",
        "yaml_files",
        "evaluation",
    },
    "sampler_tuning": {"errors", "evaluation", "sampler_tuning"},
    "serve_benchmark": {"errors", "fields", "gateways", "reports", "serve_benchmark", "types"},
    "experiments": {
        "counting",
        "types",
        "errors",
        "rng",
        "fields",
        "extensions",
        "yaml_files",
        "visible",
        "static_pages",
        "experiments",
    },
}
"""What the modules of each layer may import of this package. `sglang_host` and `cli` stand on top."""

THIRD_PARTY: dict[str, set[str]] = {
    "types": {"numpy"},
    "errors": set(),
    "rng": {"numpy"},
    "algorithms": {"numpy"},
    "engines": {"numpy", "httpx", "pydantic", "tenacity"},
    "answers": {"numpy", "regex", "math_verify", "pebble"},
    "viewer": {"pydantic", "pydantic_core", "jinja2"},
}
"""What the inner layers may import from outside of the standard library."""

HOST_LAYER = "sglang_host"
HOST_ROOMS: dict[str, set[str]] = {
    "tokenizer": {"tokenizer", "child_params", "host_sampling"},
    "scheduler": {"scheduler", "child_params", "host_sampling", "probe"},
    "experiments": {"experiments", "tokenizer"},
}
"""What the rooms of the host may import of it: `scheduler` is another process than the other two."""
LANGUAGE_MODULE = Path("frontend", "_lang.py")


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def layer_of(path: Path) -> str:
    """The first name below the package: `serving` for samplers/chain.py, `types` for types.py."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def is_command_line(layer: str) -> bool:
    return layer == "cli" or layer.endswith("_cli")


def imported(path: Path) -> Iterator[str]:
    """Absolute dotted names of everything that a module imports, wherever in it."""
    here = [PACKAGE, *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def inner_layers(path: Path) -> set[str]:
    """Layers of this package that a module imports."""
    names = (name.split(".") for name in imported(path))
    return {name[1] for name in names if name[0] == PACKAGE and len(name) > 1} - {"__version__"}


def outer_packages(path: Path) -> set[str]:
    """Top-level packages from outside that a module imports."""
    return {name.split(".")[0] for name in imported(path)} - {PACKAGE}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [p for p in modules() if layer_of(p) in ALLOWED], ids=named)
def test_imports_go_one_way(path: Path) -> None:
    assert inner_layers(path) <= ALLOWED[layer_of(path)]


def room_of(path: Path) -> str:
    """The name below the host layer; empty elsewhere."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == HOST_LAYER and len(parts) > 2 else ""


@pytest.mark.parametrize("path", [p for p in modules() if room_of(p)], ids=named)
def test_rooms_of_the_host_are_apart(path: Path) -> None:
    host = [name.split(".") for name in imported(path) if name.startswith(f"{PACKAGE}.{HOST_LAYER}.")]
    assert {name[2] for name in host} <= HOST_ROOMS[room_of(path)]


@pytest.mark.parametrize("path", [p for p in modules() if layer_of(p) in THIRD_PARTY], ids=named)
def test_inner_layers_need_numpy_at_most(path: Path) -> None:
    outside = {name for name in outer_packages(path) if name not in sys.stdlib_module_names}
    assert outside <= THIRD_PARTY[layer_of(path)]


@pytest.mark.parametrize("path", [p for p in modules() if layer_of(p) != HOST_LAYER], ids=named)
def test_only_the_host_layer_imports_sglang(path: Path) -> None:
    if path != ROOT / LANGUAGE_MODULE:
        assert "sglang" not in outer_packages(path)


def test_one_module_imports_sglangs_language_and_nothing_else_of_it() -> None:
    names = set(imported(ROOT / LANGUAGE_MODULE))
    assert {name.split(".")[1] for name in names if name.startswith("sglang.")} == {"lang"}
    assert not any(name.split(".")[0] == "torch" for name in names)


@pytest.mark.parametrize("path", [p for p in modules() if not is_command_line(layer_of(p))], ids=named)
def test_only_the_command_line_imports_the_command_line(path: Path) -> None:
    """A server, and a program, run without its modules and without argparse."""
    assert "argparse" not in outer_packages(path)
    assert not any(is_command_line(layer) for layer in inner_layers(path))


def test_every_layer_of_the_rule_exists() -> None:
    assert set(ALLOWED) <= {layer_of(path) for path in modules()}


@pytest.mark.parametrize("path", [p for p in modules() if layer_of(p) == "algorithms"], ids=named)
def test_algorithms_have_no_clock_no_io_and_no_global_randomness(path: Path) -> None:
    forbidden = {"time", "asyncio", "os", "random", "secrets", "threading", "logging", "pathlib", "socket"}
    assert not outer_packages(path) & forbidden


def test_control_the_reader_sees_every_kind_of_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "algorithms").mkdir()
    path = tmp_path / "algorithms" / "wrong.py"
    path.write_text(
        "import sglang.srt\nfrom ..samplers import chain\nfrom sglang_power import engines\n"
        "def late():\n    from sglang_power.request import PowerRequest\n    from .mh import decide\n"
    )
    assert outer_packages(path) == {"sglang"}
    assert inner_layers(path) == {"samplers", "engines", "request", "algorithms"}
