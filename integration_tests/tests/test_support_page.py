"""The table of what works: it is the one that its rows give, its tests exist, and no refusal is missing."""

from __future__ import annotations

import re

import pytest
from sglang_power.sglang_host.tokenizer import support

from integration_tests.support import FEATURES, PAGE, ROOT, Works, committed, rendered, server_features

CELLS = [cell for row in FEATURES for cell in (row.whole, row.policies, row.pair) if cell is not None]
NAMED = sorted({cell.test for cell in CELLS if isinstance(cell, Works)})


def test_the_table_is_the_generated_one() -> None:
    assert committed() == rendered(), f"run python -m integration_tests.support --write: {PAGE} is old"


@pytest.mark.parametrize("test", NAMED)
def test_every_test_that_is_named_exists(test: str) -> None:
    file, name = test.split("::")
    assert re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(), re.MULTILINE)


def test_every_field_that_is_refused_has_a_row() -> None:
    refused = {*support._SAMPLING, *support._REQUEST}
    assert refused == {field for row in FEATURES for field in row.fields}


def test_every_server_that_is_refused_has_a_row() -> None:
    assert len(list(server_features())) == len(support._SERVER) > 0
    for flag, reason in server_features():
        assert f"| {flag} | {reason} |" in committed()
