"""The report's page in a real browser: its policy lets it draw, and it asks nobody. Error rate 0; no timings.

Needs Debian's `chromium`; skipped where there is none, as the markup's tests run without one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import chromium
import pytest
from ab_reports import full_report
from sglang_power.experiments.analysis import page

pytestmark = pytest.mark.skipif(
    chromium.EXECUTABLE is None, reason="needs Chromium: apt-get install chromium"
)

SCHEMES = {"file", "data"}


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Tab]:
    with chromium.tab(tmp_path_factory.mktemp("profile")) as made:
        yield made


def written(folder: Path, html: str) -> Path:
    path = folder / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [320, 360, 400, 419, 640, 641, 1000])
def test_the_page_is_drawn_and_fits(width: int, tab: chromium.Tab, tmp_path: Path) -> None:
    tab.open(written(tmp_path, page.rendered(full_report())), width=width)
    assert tab.told("Log.entryAdded") == []  # Where the policy forbids something, the browser says so.
    asked = [event["request"]["url"].partition(":")[0] for event in tab.told("Network.requestWillBeSent")]
    assert set(asked) <= SCHEMES
    pictures = tab.value("[...document.images].map(one => one.complete && one.naturalWidth > 0)")
    assert pictures == [True] * 6
    assert tab.value("document.documentElement.scrollWidth") == width
    assert (
        tab.value("getComputedStyle(document.querySelector('section')).backgroundColor") != "rgba(0, 0, 0, 0)"
    )


CELLS = "[...document.querySelectorAll('td')].filter(cell => cell.getClientRects().length)"
OUTSIDE = f"{CELLS}.filter(cell => cell.getBoundingClientRect().right > innerWidth).length"
CLIPPED = "[...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth).length"


@pytest.mark.parametrize("width", [320, 400, 419, 640])
def test_no_column_is_clipped_on_a_telephone(width: int, tab: chromium.Tab, tmp_path: Path) -> None:
    """Names of the greatest length, too; every cell says what it is, since there is no head above it."""
    found = full_report()
    arms = tuple(arm.model_copy(update={"name": f"{arm.name}{'x' * 50}"}) for arm in found.arms)
    tab.open(written(tmp_path, page.rendered(found.model_copy(update={"arms": arms}))), width=width)
    assert tab.value(f"{CELLS}.length") > 20
    assert (tab.value(OUTSIDE), tab.value(CLIPPED)) == (0, 0)
    labels = f"{CELLS}.map(cell => cell.querySelector('.label').getClientRects().length)"
    assert set(tab.value(labels)) == {1}
    names = "[...document.querySelectorAll('picture img')].map(image => image.naturalWidth)"
    assert len(set(tab.value(names))) == 1
    assert max(tab.value(names)) < 500, "the picture for small screens"


def test_control_the_policy_stops_a_script_that_got_in(tab: chromium.Tab, tmp_path: Path) -> None:
    html = page.rendered(full_report())
    planted = html.replace("</main>", "<script>document.title = 'owned'</script></main>")
    assert planted != html
    tab.open(written(tmp_path, planted))
    assert tab.value("document.title") == "Report of an experiment"
    assert tab.told("Log.entryAdded")
