"""The server of the other tests, and the tools' own environment, which `make test-tools` installs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from integration_tests.tests.conftest import logs, no_thread_is_left, pivot_server, third_party

__all__ = ["logs", "no_thread_is_left", "pivot_server", "third_party"]

TOOLS_BIN = "SGLANG_TOOLS_BIN"
"""Environment variable with the folder of the tools' programs."""


@pytest.fixture(scope="session")
def tools() -> Path:
    """The folder of lm-eval's program."""
    if not (named := os.environ.get(TOOLS_BIN)):
        raise RuntimeError(f"{TOOLS_BIN} is not set: run these tests by `make test-tools`")
    assert (Path(named) / "lm-eval").exists()
    return Path(named)
