"""Draws trace pages for integration_tests/results: `python plugin/tests/helpers/draw_traces.py`.

From the records in `data`, with Chromium; a page of each kind, one on a screen and one on a dark phone.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import chromium
from PIL import Image
from sglang_power.viewer import read_record, rendered

DATA = Path(__file__).parents[1] / "data"
RESULTS = Path(__file__).parents[3] / "integration_tests" / "results"
COLOURS = 256
"""Of the pictures, which keeps them small."""


def draw(
    tab: chromium.Tab, name: str, picture: Path, page: Path, *, width: int, height: int, dark: bool
) -> None:
    """One page from its top, with the details of one step open."""
    record = read_record((DATA / f"{name}.json").read_bytes())
    page.write_text(rendered(record, source=f"{name}.json"), encoding="utf-8")
    tab.open(page, width=width, height=height, dark=dark)
    tab.click(".line", 4)
    tab.value("scrollTo(0, 0)")
    tab.screenshot(picture)
    Image.open(picture).quantize(COLOURS).save(picture, optimize=True)


def main() -> None:
    """Both pictures."""
    with tempfile.TemporaryDirectory() as folder, chromium.tab(Path(folder) / "profile") as tab:
        page = Path(folder) / "page.html"
        draw(tab, "chain_record", RESULTS / "trace_chain.png", page, width=900, height=1500, dark=False)
        draw(tab, "tree_record", RESULTS / "trace_tree.png", page, width=390, height=1750, dark=True)


if __name__ == "__main__":
    main()
