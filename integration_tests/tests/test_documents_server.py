"""Every request and program of the documents is sent to the pivot server as it stands there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sglang_power.reports import report_of

from integration_tests.documents import README, Block, all_blocks, blocks, run, workplace
from integration_tests.server import Server

(SHOWN,) = [block for block in blocks(README) if block.sampler is not None]
"""The request whose answer the README shows."""

ASKING = [block for block in all_blocks() if block.runs and block.asks_server and block != SHOWN]


@pytest.mark.long
@pytest.mark.parametrize("block", ASKING, ids=str)
def test_what_the_documents_ask_is_answered(block: Block, pivot_server: Server, tmp_path: Path) -> None:
    place = workplace(tmp_path)
    printed = run(block, place, pivot_server.url)
    if block.sampler is not None:
        saved = place / "response.json"  # where the block keeps the answer
        answer = json.loads(saved.read_text() if saved.exists() else printed)
        report_of(answer["meta_info"].get("power"), block.sampler)


def shape(value: Any) -> Any:
    """Return a value with its numbers and texts replaced by their types."""
    if isinstance(value, dict):
        return {key: shape(entry) for key, entry in value.items()}
    return type(value).__name__


def test_the_answer_that_the_readme_shows_has_the_form_of_a_real_one(
    pivot_server: Server, tmp_path: Path
) -> None:
    """The numbers depend on the machine's arithmetic."""
    (shown,) = [block for block in blocks(README) if block.language == "json"]
    real = json.loads(run(SHOWN, workplace(tmp_path), pivot_server.url))

    def cut(whole: Any, part: Any) -> Any:
        return {key: cut(whole[key], part[key]) for key in part} if isinstance(part, dict) else whole

    expected = json.loads(shown.text)
    assert shape(cut(real, expected)) == shape(expected)
    report = report_of(real["meta_info"].get("power"), expected["meta_info"]["power"]["sampler"])
    assert report["seed"] == expected["meta_info"]["power"]["seed"]
