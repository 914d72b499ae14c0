"""The developer notes say what there is: the files of a power request."""

from __future__ import annotations

import re
from pathlib import Path

import sglang_power

PACKAGE = Path(sglang_power.__file__).parent
NOTES = PACKAGE.parent / "docs" / "developing.md"
MOST = 25
"""Files that a newcomer reads to follow a power request."""


def test_a_power_request_is_followed_in_few_files() -> None:
    """Numbered without a gap, each once, and each there."""
    rows = re.findall(r"^\| (\d+) \| `(.+?)` \|", NOTES.read_text(), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    files = [file for _, file in rows]
    assert len(set(files)) == len(files) <= MOST
    assert [file for file in files if not (PACKAGE / file).is_file()] == []
