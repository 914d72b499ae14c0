"""The page of a record: whatever strings a record holds, they stay text. Parsed as browsers do, without one.

Error rate 0: hypothesis looks for a string, in any place, that changes the markup; it runs derandomised.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import html5lib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planting import Place, places, planted
from sglang_power import cli
from sglang_power.errors import RecordError
from sglang_power.viewer import page, rendered, validated
from sglang_power.viewer.record import TraceRecord

DATA = Path(__file__).parents[1] / "data"
RECORDS = ("chain_record", "tree_record")

Json = dict[str, Any]
Markup = list[tuple[str, tuple[tuple[str, str], ...], str]]

ATTACKS = (
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "]]><img src=x onerror=alert(1)>",
    "\"'><svg/onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;b&gt;&amp;\u2028\u2029",
    "\u202eevil\u2066\u0000\u001b[31m",
    "__proto__",
    "a" * 5000,
)


CAPPED = {"capped": [{"name": "max_branches", "position": 3, "refused": 2}], "hint": "Choose others"}
"""What a tree's search may tell beside what the saved one does."""


@functools.cache
def saved(name: str) -> str:
    content = json.loads((DATA / f"{name}.json").read_text())
    if name == "tree_record":
        content["run"] |= CAPPED
    return json.dumps(content)


def markup(html: str) -> Markup:
    """Every element in order, with its attributes and its own text, but the data that the script reads."""
    document = html5lib.parse(html, namespaceHTMLElements=False)
    elements: Markup = []
    for one in document.iter():
        own = "".join([one.text or "", *(child.tail or "" for child in one)])
        attributes = tuple(sorted(one.attrib.items()))
        elements.append((str(one.tag), attributes, "" if one.get("id") == "data" else own))
    return elements


def block(html: str) -> Any:
    """The data that the page's script reads."""
    document = html5lib.parse(html, namespaceHTMLElements=False)
    (found,) = (one for one in document.iter("script") if one.get("type") == "application/json")
    return json.loads(found.text)


@functools.cache
def benign() -> Markup:
    return markup(rendered(validated(json.loads(saved("tree_record"))), source="record.json"))


def has_free_keys(place: Place) -> bool:
    return place[:1] == ("params",)


@functools.cache
def everywhere(name: str) -> list[tuple[str | int, ...]]:
    return sorted(places(json.loads(saved(name)), has_free_keys), key=str)


def valid(content: Json) -> TraceRecord | None:
    """None where the schema refuses it, as it does for a string in place of a literal."""
    try:
        return validated(content)
    except RecordError:
        return None


hostile = st.sampled_from(ATTACKS) | st.text(max_size=60) | st.text("<>&\"'/!-=\u2028\\ script", max_size=40)


@pytest.mark.parametrize("name", RECORDS)
@given(data=st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_no_string_in_any_place_changes_the_markup(name: str, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(everywhere(name)))
    text, source = data.draw(hostile), data.draw(hostile)
    record = valid(planted(json.loads(saved(name)), path, text))
    if record is None:
        return
    html = rendered(record, source=source)
    assert markup(html) == benign()
    assert block(html) == page.page_data(record, source)


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_every_place_at_once_changes_nothing(name: str, attack: str) -> None:
    content, refused = json.loads(saved(name)), 0
    for path in everywhere(name):
        changed = planted(content, path, attack) if path[-1] != "key:" else content
        if valid(changed) is None:
            refused += 1
        else:
            content = changed
    assert refused < len(everywhere(name)) / 2
    record = validated(content)
    assert markup(rendered(record, source=attack)) == benign()


def test_control_a_careless_page_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    record = validated({**json.loads(saved("tree_record")), "answer": ATTACKS[0]})
    assert markup(rendered(record, source="")) == benign()
    monkeypatch.setattr(page, "inlined", json.dumps)
    assert markup(rendered(record, source="")) != benign()


@given(text=st.text() | st.sampled_from(ATTACKS))
@settings(deadline=None, derandomize=True)
def test_what_cannot_be_seen_is_spelled_out(text: str) -> None:
    shown = page.visible(text)
    assert {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"} <= {"Cc"}
    assert {c for c in shown if unicodedata.category(c) == "Cc"} <= {"\n"}
    assert page.visible(shown.replace("\n", "")) == shown.replace("\n", "")


def test_directions_controls_and_lines_are_spelled_out() -> None:
    assert page.visible("a\u202eb\u200bc\x00\r") == "a⟨U+202E⟩b⟨U+200B⟩c⟨U+0000⟩⟨U+000D⟩"
    assert page.visible("one\n\ttwo\ud800") == "one↵\n⇥two⟨U+D800⟩"
    assert page.visible("Grüße, 漢字, שלום") == "Grüße, 漢字, שלום"


def test_all_strings_of_the_data_are_visible() -> None:
    content = {**json.loads(saved("tree_record")), "prompt": "\u202e", "sampler": "\u202e"}
    content["params"] = {"\u202e": ["\u202e", {"\u202e": "\u202e"}]}
    content["run"]["nodes"][1]["text"] = content["run"]["classes"][0]["representative"] = "\u202e"
    html = rendered(validated(content), source="\u202e")
    assert "\u202e" not in json.dumps(block(html), ensure_ascii=False)
    assert "\u202e" not in html


def test_the_policy_names_the_one_script_and_the_one_style() -> None:
    def hashed(tag: str) -> list[str]:
        texts = [own for one, attributes, own in benign() if one == tag and not attributes]
        return [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]

    metas = [dict(attributes) for tag, attributes, _ in benign() if tag == "meta"]
    (policy,) = (meta["content"] for meta in metas if meta.get("http-equiv") == "Content-Security-Policy")
    (script,), (style,) = hashed("script"), hashed("style")
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; "
        "base-uri 'none'; form-action 'none'"
    )


def test_the_page_asks_nobody_and_makes_no_markup_from_text() -> None:
    attributes = [pair for _, pairs, _ in benign() for pair in pairs]
    assert not [name for name, _ in attributes if name.startswith("on") or name in ("style", "src", "href")]
    whole = "".join(own for _, _, own in benign())
    for name in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function("):
        assert name not in whole
    assert "http" not in whole.lower()
    assert {"lang", "viewport", "utf-8"} <= {part for pair in attributes for part in pair}


@pytest.mark.parametrize("name", ["record.json", "<img src=x onerror=alert(1)>.json", "\u202egnp.json"])
def test_the_command_writes_the_page_beside_the_record(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_text(saved("tree_record"))
    again = tmp_path / "again.json"
    assert cli.main(["trace", str(path), "--prompt", "<b>", "--save-record", str(again)]) == 0
    html = path.with_suffix(".html").read_text(encoding="utf-8")
    assert capsys.readouterr().out == f"wrote {path.with_suffix('.html')}\nwrote {again}\n"
    assert markup(html) == benign()
    assert block(html)["source"] == page.visible(name)
    assert block(html)["prompt"] == "<b>"
    assert validated(json.loads(again.read_text())).prompt == "<b>"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_text("{}"), "meta_info.power: there is none"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_the_command_names_what_is_wrong(
    spoil: Callable[[Path], object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "record.json"
    path.write_text("")
    spoil(path)
    assert cli.main(["trace", str(path), "-o", str(tmp_path / "page.html")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_the_command_imports_neither_torch_nor_sglang(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from sglang_power.cli import main\n"
        f"main(['trace', {str(DATA / 'chain_record.json')!r}, '-o', {str(tmp_path / 'page.html')!r}])\n"
        "print(sorted({'torch', 'sglang', 'numpy'} & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
