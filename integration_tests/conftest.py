"""What every folder of tests has: the option to write a committed record, which each of some targets has."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option to write the record."""
    parser.addoption("--write-results", action="store_true", help="write the committed record of these tests")
