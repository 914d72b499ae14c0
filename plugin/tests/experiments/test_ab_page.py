"""The page of a report: whatever strings a report holds, they stay text. Parsed as browsers do, without one.

Error rate 0: all attacks are put into each string of a report, and each attack into all of its strings.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from typing import Any
from xml.etree import ElementTree

import html5lib
import pytest
from ab_reports import effect, full_report
from jinja2 import Environment
from planting import Place, places, planted
from pydantic import ValidationError
from sglang_power import static_pages
from sglang_power.experiments.analysis import page, plots
from sglang_power.experiments.analysis.results import Report

Json = Any
Markup = list[tuple[str, tuple[tuple[str, str], ...]]]

ATTACKS = (
    "</style><script>alert(1)</script>",
    "<!--<script>",
    "]]><img src=x onerror=alert(1)>",
    "\"'><svg/onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;b&gt;&amp;\u2028\u2029",
    "\u202eevil\u2066\u0000\u001b[31m",
    "$\\frac{1}{",
    "a" * 5000,
)


def markup(html: str) -> Markup:
    """Every element in order, with its attributes."""
    document = html5lib.parse(html, namespaceHTMLElements=False)
    return [(str(one.tag), tuple(sorted(one.attrib.items()))) for one in document.iter()]


def text(html: str) -> str:
    return "".join(html5lib.parse(html, namespaceHTMLElements=False).itertext())


@functools.cache
def benign() -> Markup:
    return markup(page.rendered(full_report()))


def has_free_keys(place: Place) -> bool:
    return bool(place) and place[-1] in ("outcomes", "slices", "means", "metrics")


def spoilt(path: tuple[Any, ...], attack: str) -> Report | None:
    """None where the schema refuses it, as it does for a string in place of a literal."""
    try:
        return Report.model_validate_json(json.dumps(planted(full_report().model_dump(), path, attack)))
    except ValidationError:
        return None


PLACES = sorted(places(json.loads(full_report().model_dump_json()), has_free_keys), key=str)


@pytest.fixture
def blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take long to draw."""
    monkeypatch.setattr(plots, "path_svg", lambda *_: b"")
    monkeypatch.setattr(plots, "quantiles_svg", lambda _seconds, _longest: b"")


@pytest.mark.usefixtures("blank")
def test_no_string_in_any_place_changes_the_markup() -> None:
    usual = markup(page.rendered(full_report()))
    tried = 0
    for path in PLACES:
        if (report := spoilt(path, " ".join(ATTACKS))) is not None:
            tried += 1
            assert markup(page.rendered(report)) == usual, path
    assert tried > len(PLACES) / 2


@pytest.mark.usefixtures("blank")
@pytest.mark.parametrize("attack", ATTACKS)
def test_every_place_at_once_changes_nothing(attack: str) -> None:
    content = json.loads(full_report().model_dump_json())
    for path in PLACES:
        if path[-1] != "key:" and path[0] != "srm" and spoilt(path, attack) is not None:
            content = planted(content, path, attack)
    html = page.rendered(Report.model_validate_json(json.dumps(content)))
    assert markup(html) == markup(page.rendered(full_report()))
    assert "\u202e" not in html
    assert "\x1b" not in html


def test_attacks_are_shown_as_what_they_are() -> None:
    report = spoilt(("hypothesis",), ATTACKS[0])
    assert report is not None
    assert ATTACKS[0] in text(page.rendered(report))


def test_control_a_careless_template_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        static_pages, "Environment", lambda **how: Environment(**{**how, "autoescape": False})
    )
    report = spoilt(("hypothesis",), ATTACKS[2])
    assert report is not None
    assert markup(page.rendered(report)) != benign()


def test_the_policy_forbids_scripts_and_names_the_one_style() -> None:
    html = page.rendered(full_report())
    document = html5lib.parse(html, namespaceHTMLElements=False)
    (style,) = document.iter("style")
    hashed = base64.b64encode(hashlib.sha256(style.text.encode()).digest()).decode()
    metas = [one.get("content") for one in document.iter("meta") if one.get("http-equiv")]
    assert metas == [
        f"default-src 'none'; style-src 'sha256-{hashed}'; img-src data:; base-uri 'none'; form-action 'none'"
    ]


def test_the_page_asks_nobody() -> None:
    tags = {tag for tag, _ in benign()}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form", "a", "svg"}
    pairs = [pair for _, attributes in benign() for pair in attributes]
    assert not [name for name, _ in pairs if name.startswith("on") or name in ("style", "href")]
    sources = [value for name, value in pairs if name in ("src", "srcset")]
    assert sources
    assert all(value.startswith("data:image/svg+xml;base64,") for value in sources)


def test_pictures_are_vector_graphics_without_text_of_the_report() -> None:
    svg = plots.path_svg(effect("primary", "thumbs", 0.01, 0.02))
    strip = plots.quantiles_svg({"p50": 1.0, "p95": 2.0, "p99": 3.0}, 3.0)
    assert svg is not None
    assert strip is not None
    for picture in (svg, strip):
        assert ElementTree.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"
    for attack in ATTACKS:
        named = effect("primary", attack, 0.01, 0.02, control=attack).model_copy(update={"arm": attack})
        assert plots.path_svg(named) == svg


@pytest.mark.parametrize(
    ("role", "direction", "goal"),
    [
        ("primary", "higher", 0.02),
        ("primary", "lower", -0.02),
        ("guardrail", "higher", -0.02),
        ("guardrail", "lower", 0.02),
        ("shown", "lower", None),
    ],
)
def test_the_threshold_is_drawn_on_its_side_of_zero(role: Any, direction: Any, goal: float | None) -> None:
    assert plots._goal(effect(role, "m", -0.1, 0.1, direction=direction, threshold=0.02)) == goal


def test_without_an_interval_there_is_no_picture_but_a_reason() -> None:
    silent = effect("primary", "thumbs", None, None)
    assert plots.path_svg(silent) is None
    assert plots.path_svg(silent.model_copy(update={"path": ()})) is None
    assert plots.quantiles_svg({}, 1.0) is None
    report = full_report().model_copy(update={"effects": (silent,)})
    html = page.rendered(report)
    assert "not enough data: 12 units with the event, 20 are needed" in text(html)


def test_an_empty_report_is_a_page() -> None:
    empty = {"arms": (), "effects": (), "shadows": (), "began": None, "until": None, "config": None}
    html = page.rendered(full_report().model_copy(update={**empty, "killed": 0.0}))
    assert "killed at 1970-01-01 00:00 UTC" in " ".join(text(html).split())
