"""Install lines: every one that documents and messages name is one that works from a clone. Error rate 0.

The package is on no index, so `pip install "sglang-power[math]"` installs nothing, or another's package.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from sglang_power.extensions import install_extra

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
SOURCES = sorted(
    path
    for pattern in ("*.md", "*.py", "*.yaml", "Makefile")
    for folder in ("plugin", "kernels", "integration_tests", "configs", ".")
    for path in (ROOT.glob(pattern) if folder == "." else (ROOT / folder).rglob(pattern))
    if path.name != Path(__file__).name and ".venv" not in path.parts and path.name != "CHANGELOG.md"
)


def test_no_document_and_no_message_installs_from_an_index() -> None:
    found = [
        f"{path}: {text}" for path in SOURCES for text in re.findall(r"sglang-power\[\w+\]", path.read_text())
    ]
    assert found == []


def test_every_extra_that_is_named_exists() -> None:
    named = {
        extra
        for path in SOURCES
        for line in re.findall(r"\.\[([\w,]+)\]|install_extra\([\"'](\w+)[\"']\)", path.read_text())
        for extra in "".join(line).split(",")
    }
    assert {"math", "ab", "otel", "demo"} <= named
    assert named <= set(EXTRAS)


@pytest.mark.parametrize("extra", ["math", "ab", "otel", "eval"])
def test_the_hint_is_a_command_of_a_clone(extra: str) -> None:
    assert install_extra(extra) == f"pip install '.[{extra}]' in a clone of sglang-power"
