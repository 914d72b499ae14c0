"""The page in a real browser, clicked through. Error rate 0; no timings.

Needs Debian's `chromium`; skipped where there is none, as the markup's tests run without one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromium
import pytest
from sglang_power.viewer import rendered, validated

pytestmark = pytest.mark.skipif(
    chromium.EXECUTABLE is None, reason="needs Chromium: apt-get install chromium"
)

DATA = Path(__file__).parents[1] / "data"
PHONE = 360
ENTER = ("Enter", 13, "\r")

Json = dict[str, Any]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Tab]:
    with chromium.tab(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def tab(browser: chromium.Tab) -> Iterator[chromium.Tab]:
    """The browser; whatever a test does with its page, the page goes by its policy and asks nobody."""
    yield browser
    assert browser.told("Runtime.exceptionThrown") == []
    assert browser.told("Log.entryAdded") == []
    asked = [event["request"]["url"] for event in browser.told("Network.requestWillBeSent")]
    assert [url.partition(":")[0] for url in asked] == ["file"]


def saved(name: str) -> Json:
    content: Json = json.loads((DATA / f"{name}.json").read_text())
    return content


def written(content: Json, folder: Path) -> Path:
    page = folder / "page.html"
    page.write_text(rendered(validated(content), source="record.json"), encoding="utf-8")
    return page


def tree(nodes: list[Json], **more: Any) -> Json:
    """A record whose tree has these nodes, each told by what differs from a plain leaf."""
    plain: Json = {"parent": 0, "start": 0, "end": 1, "text": "t", "fate": "leaf"}
    plain |= {"log_p": -1.0, "first_log_p": -1.0}
    content = saved("tree_record")
    root = {**plain, "parent": None, "end": 0, "fate": "forked"}
    run = {"nodes": [root, *({**plain, **node} for node in nodes)], "classes": [], "chosen": 1}
    content["run"] = {"kind": "tree", "reason": "mean_log_p", **run, **more}
    return content


def texts(tab: chromium.Tab, selector: str) -> list[str]:
    elements = f"[...document.querySelectorAll({json.dumps(selector)})]"
    found: list[str] = tab.value(f"{elements}.map(e => e.textContent)")
    return found


def count(tab: chromium.Tab, selector: str) -> int:
    return int(tab.value(f"document.querySelectorAll({json.dumps(selector)}).length"))


def test_a_tree_opens_on_the_way_to_the_answer(tab: chromium.Tab, tmp_path: Path) -> None:
    tab.open(written(saved("tree_record"), tmp_path))
    assert texts(tab, "#answer") == ["w5*0=0;w0*4=0;g0;g9;g9;A9."]
    assert "At 6 places the model was unsure" in texts(tab, "#story")[0]
    assert texts(tab, "#groups .text") == ["9", "6", "1"]
    assert texts(tab, ".row .text") == ["(the prompt)", "g", "w5*0=0;", "g", "w0*4=0;g0;g9;g9;A9."]
    assert texts(tab, ".row.chosen .tag.chosen") == ["★ the answer"]


def test_a_group_says_where_paths_are_omitted(tab: chromium.Tab, tmp_path: Path) -> None:
    group = {"representative": "9", "members": [1], "weight": 3.0}
    for omitted, told in ((0, "1 path, weight 3"), (4, "1 path or more, weight 3")):
        tab.open(written(tree([{}], classes=[group], omitted=omitted), tmp_path))
        assert texts(tab, "#groups .numbers > :first-child") == [told]


def test_branches_open_and_close(tab: chromium.Tab, tmp_path: Path) -> None:
    tab.open(written(saved("tree_record"), tmp_path))
    tab.click(".twist", 1)
    assert texts(tab, ".row .text")[:4] == ["(the prompt)", "g", "3;", "7;"]
    tab.click(".twist", 2)
    assert texts(tab, ".row .text")[2:5] == ["3;", "g7;g9;g9;g6;A6.", "w3*4=2;g9;g4;g9;A9."]
    tab.click(".twist", 1)
    assert texts(tab, ".row .text")[:3] == ["(the prompt)", "g", "w5*0=0;"]
    tab.click("#open-all")
    assert count(tab, ".row") == 13
    tab.click(".twist", 0)
    assert count(tab, ".row") == 1
    tab.click("#open-winner")
    assert count(tab, ".row") == 5


def test_a_text_tells_its_numbers(tab: chromium.Tab, tmp_path: Path) -> None:
    tab.open(written(saved("tree_record"), tmp_path))
    tab.click(".line", 4)
    (told,) = texts(tab, ".more")
    assert "w5*0=0;w0*4=0;g0;g9;g9;A9." in told
    assert "as unsure as among 1.97 equally likely tokens" in told
    assert "probability of its first token" in told
    tab.click(".line", 4)
    assert count(tab, ".more") == 0


def test_the_bar_is_the_probability_and_its_colour_the_entropy(tab: chromium.Tab, tmp_path: Path) -> None:
    half: Json = {"first_log_p": -0.6931471805599453, "entropy": 0.1}
    tab.open(written(tree([half, {"entropy": 2.5}, {"first_log_p": None}]), tmp_path))
    share = "[...document.querySelectorAll('.fill')].filter(e => e.closest('.row'))"
    ratio = f"{share}.map(e => e.getBoundingClientRect().width / e.parentElement.clientWidth)"
    assert tab.value(ratio) == pytest.approx([0.5, 0.3679, 0.3679], abs=0.02)
    assert tab.value(f"{share}.map(e => e.className)") == ["fill e0", "fill e4", "fill e-none"]


def test_a_chain_shows_both_endings(tab: chromium.Tab, tmp_path: Path) -> None:
    tab.open(written(saved("chain_record"), tmp_path))
    assert count(tab, ".step") == 36
    assert texts(tab, ".stage") == [*(f"Block {i}" for i in range(1, 6)), "The finished answer"]
    tab.click(".line", 9)
    (told,) = texts(tab, ".more")
    assert (
        "Kept: 7 tokens. Tried: another ending in place of the 9 tokens behind them. After 2 tokens" in told
    )
    assert "Old endingw5*0=0;w0*4=0;w0New endingw5*0=0;g1" in told
    tab.click("#only-accepted")
    hidden = "[...document.querySelectorAll('.step')].filter(e => getComputedStyle(e).display === 'none')"
    assert tab.value(f"{hidden}.length") == 20


def test_the_keyboard_is_enough(tab: chromium.Tab, tmp_path: Path) -> None:
    tab.open(written(saved("tree_record"), tmp_path))
    tab.value("document.querySelectorAll('.twist')[1].focus()")
    tab.press(*ENTER)
    assert texts(tab, ".row .text")[2] == "3;"
    tab.press("Tab", 9)
    tab.press(*ENTER)
    assert count(tab, ".row:nth-child(2) .more") == 1
    names = tab.value("[...document.querySelectorAll('.twist')].map(e => e.ariaLabel + ' ' + e.ariaExpanded)")
    assert names[:2] == ["2 branches, level 1 true", "2 branches, level 2 true"]


def test_two_thousand_branches_are_made_when_they_are_opened(tab: chromium.Tab, tmp_path: Path) -> None:
    nodes = [{"parent": (number - 1) // 2} for number in range(1, 2000)]
    tab.open(written(tree(nodes), tmp_path))
    assert count(tab, ".row") == 5  # The root, its two branches, the winner's two.
    tab.click("#open-all")
    assert count(tab, ".row") == 2000
    assert tab.value("getComputedStyle(document.querySelector('.row')).contentVisibility") == "auto"


def test_a_very_deep_tree_stays_flat_on_a_phone(tab: chromium.Tab, tmp_path: Path) -> None:
    nodes = [{"parent": number - 1} for number in range(1, 2000)]
    tab.open(written(tree(nodes, chosen=1999), tmp_path), width=PHONE)
    assert count(tab, ".row") == 2000
    assert tab.value("document.querySelector('.row:last-child .line').getBoundingClientRect().width") > 200


@pytest.mark.parametrize("name", ["tree_record", "chain_record"])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_sticks_out_on_a_phone(name: str, dark: bool, tab: chromium.Tab, tmp_path: Path) -> None:
    content = saved(name)
    content["prompt"] = content["answer"] = "x" * 3000
    tab.open(written(content, tmp_path), width=PHONE, dark=dark)
    tab.click("summary")
    tab.click(".line", 4)
    assert tab.value("document.documentElement.scrollWidth") == PHONE
    assert tab.value(
        "[...document.querySelectorAll('pre, .texts')].every(e => e.scrollWidth <= e.clientWidth)"
    )
    light = tab.value("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)[0]")
    assert (light < 128) == dark


def test_hostile_strings_are_shown_as_they_are(tab: chromium.Tab, tmp_path: Path) -> None:
    attack = "</script><img src=x onerror='window.hacked=1'>"
    content = saved("tree_record")
    content["prompt"] = content["answer"] = content["sampler"] = attack
    content["params"] = {attack: attack, "__proto__": {"polluted": attack}}
    for node in content["run"]["nodes"]:
        node.update(text=attack, answer=attack, trigger=attack, cap=attack, note=attack)
    for one in content["run"]["classes"]:
        one["representative"] = attack
    tab.open(written(content, tmp_path))
    tab.click("#open-all")
    for number in (0, 3, 9):
        tab.click(".line", number)
    assert texts(tab, "#prompt") == [attack]
    assert texts(tab, ".node .text")[3] == attack
    assert texts(tab, "#params dt") == [attack, "__proto__"]
    assert texts(tab, "#params dd") == [json.dumps(value) for value in content["params"].values()]
    assert count(tab, "img") == 0
    assert tab.value("[window.hacked, {}.polluted].every(value => value === undefined)")


def test_directions_are_spelled_out(tab: chromium.Tab, tmp_path: Path) -> None:
    tab.open(written({**saved("tree_record"), "answer": "a\u202eb"}, tmp_path))
    assert texts(tab, "#answer") == ["a⟨U+202E⟩b"]


def test_control_the_policy_stops_what_is_not_the_pages_own(browser: chromium.Tab, tmp_path: Path) -> None:
    page = written(saved("tree_record"), tmp_path)
    more = "<script>window.hacked=1</script><img src='http://127.0.0.1:9/x' onerror='window.hacked=1'>"
    page.write_text(page.read_text().replace("</main>", f"{more}</main>"))
    browser.open(page)
    assert browser.value("window.hacked === undefined")
    blocked = [entry["entry"]["text"] for entry in browser.told("Log.entryAdded")]
    assert sum("Content Security Policy" in text for text in blocked) >= 2
