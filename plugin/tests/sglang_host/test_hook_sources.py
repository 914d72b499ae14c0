"""What an upgrade of SGLang changes under the hooks is named; what cannot be hooked ends the start."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import sglang
from sglang_power.cli import main
from sglang_power.errors import HostError
from sglang_power.sglang_host import install, sources
from sglang_power.sglang_host.hooks import HOOKS, Hook

SERVING = '''"""A module."""


class Serving:
    """A class."""

    @property
    def port(self):
        return 1

    async def serve(self, request):
        # A comment.
        return request
'''
TARGETS = ["sglang.srt.serving.Serving.serve", "sglang.srt.serving.Serving", "sglang.gone", "uvicorn.run"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for package in ("sglang", "sglang/srt"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "sglang/srt/serving.py").write_text(SERVING)
    return tmp_path


def rewrite(tree: Path, old: str, new: str) -> sources.Digests:
    path = tree / "sglang/srt/serving.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return sources.digests(TARGETS, tree)


def test_comments_and_layout_change_nothing(tree: Path) -> None:
    before = sources.digests(TARGETS, tree)
    after = rewrite(tree, "        # A comment.\n", "\n        # Another one,\n        # longer.\n")
    assert after == before
    assert before["sglang.gone"] is None
    assert "uvicorn.run" not in before


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        pytest.param("return request", "return None", TARGETS[:2], id="body"),
        pytest.param("(self, request)", "(self, request, raw)", TARGETS[:2], id="signature"),
        pytest.param("    @property\n", "    @staticmethod\n", TARGETS[1:2], id="decorator elsewhere"),
        pytest.param('"""A module."""', '"""Another module."""', [], id="outside"),
    ],
)
def test_what_changed_is_named(tree: Path, old: str, new: str, changed: Sequence[str]) -> None:
    table = {"0.5.9": sources.digests(TARGETS, tree), "0.5.10": sources.digests(TARGETS, tree)}
    review = sources.reviewed(rewrite(tree, old, new), "0.5.11", table)
    assert review.against == "0.5.10"
    assert sorted(review.changed) == sorted(changed)
    assert review.clean == (not changed)
    assert all(any(target in line for line in review.lines()) for target in changed)


def test_what_came_and_what_went_is_named(tree: Path) -> None:
    table = {"0.5.9": sources.digests(TARGETS, tree)}
    review = sources.reviewed(rewrite(tree, "async def serve", "async def answer"), "0.6.0", table)
    assert review.gone == ("sglang.srt.serving.Serving.serve",)
    later = {"0.6.0": sources.digests(TARGETS, tree)}
    back = sources.reviewed(rewrite(tree, "async def answer", "async def serve"), "0.6.1", later)
    assert back.new == ("sglang.srt.serving.Serving.serve",)


def test_every_hook_of_the_installed_version_is_recorded() -> None:
    targets = [hook.target for hook in HOOKS]
    found = sources.digests(targets, Path(sglang.__file__).parents[1])
    assert set(found) == {target for target in targets if target.startswith("sglang.")}
    table = sources.recorded()
    assert table.keys() >= {"0.5.20", "0.5.21", "0.5.22", "0.5.23"}
    assert all(table[version].keys() == found.keys() for version in table), "run 'sglang-power hooks --write'"
    optional = {hook.target for hook in HOOKS if hook.optional}
    for known in table.values():
        assert {target for target, digest in known.items() if digest is None} <= optional
    assert list(sources.reviewed(found, sglang.__version__, table).lines()) == [
        f"SGLang {sglang.__version__} (recorded): nothing changed"
    ]


def test_the_command_records_a_tree_and_names_what_another_one_changes(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sources, "TABLE", tmp_path / "table.json")
    monkeypatch.setattr(sources.record, "__defaults__", (sources.TABLE,))
    monkeypatch.setattr(sources.recorded, "__defaults__", (sources.TABLE,))
    targets = [Hook(target, "around", "x:y", "nothing", ()) for target in TARGETS]
    monkeypatch.setattr("sglang_power.sglang_host.hooks.HOOKS", targets)
    assert main(["hooks", "--sglang", str(tree), "--version", "0.5.9", "--write"]) == 0
    rewrite(tree, "return request", "return None")
    assert main(["hooks", "--sglang", str(tree), "--version", "0.5.10"]) == 1
    assert "changed  sglang.srt.serving.Serving.serve" in capsys.readouterr().out
    assert main(["hooks", "--sglang", str(tree)]) == 2
    assert "--version" in capsys.readouterr().err
    assert main(["hooks", "--sglang", str(tmp_path / "nothing"), "--version", "1"]) == 2
    assert "no package 'sglang'" in capsys.readouterr().err


async def around_serve(original: object, self: object, request: object) -> None:
    """A hook."""


class Kept:
    """A class that a hook replaces."""

    def adjusted_rows(self) -> None:
        """What it overrides."""


HERE = "test_hook_sources"


@pytest.mark.parametrize(
    ("kind", "own", "source", "why"),
    [
        ("around", "around_serve", "async def target(self, request): ...", None),
        ("around", "around_serve", "async def target(self, request, raw=None): ...", "raw"),
        ("around", "around_serve", "async def target(self, *, request): ...", None),
        ("around", "around_serve", "async def target(self, *, other): ...", "other"),
        ("around", "around_serve", "async def target(self): ...", "request"),
        ("replace", "Kept", "class target:\n  def adjusted_rows(self): ...", None),
        ("replace", "Kept", "class target:\n  def rows(self): ...", "adjusted_rows"),
    ],
)
def test_a_target_that_cannot_be_hooked_any_more_ends_the_start(
    kind: str, own: str, source: str, why: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "changed_host.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "changed_host", raising=False)
    hook = Hook("changed_host.target", kind, f"{HERE}:{own}", "everything", ())  # type: ignore[arg-type]
    monkeypatch.setattr(Hook, "load", lambda _: globals()[own])
    if why is None:
        assert hook.misfit() is None
        return
    assert why in (hook.misfit() or "")
    with pytest.raises(HostError, match=r"changed changed_host\.target .*everything does not hold"):
        install._register_hook(hook)


def test_a_version_that_nobody_reviewed_says_so(caplog: pytest.LogCaptureFixture) -> None:
    install._review_sources(sglang.__version__)
    assert not caplog.records
    install._review_sources("0.5.99")
    (record,) = caplog.records
    assert "SGLang 0.5.99 (not recorded; against 0.5.23): nothing changed" in record.getMessage()
