"""Measurements leave the checkout as it is, unless they are told to renew what is committed. No server."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from integration_tests import demo, outputs
from integration_tests.benchmarks import assignment, kill_switch, plain_requests, triggers

ROOT = Path(__file__).parents[2]
MEASURING = [demo, assignment, kill_switch, plain_requests, triggers]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "sglang-power"


def parsed(*arguments: str) -> Path:
    parser = argparse.ArgumentParser()
    outputs.add_outputs(parser, "demo", ROOT / "results")
    folder: Path = parser.parse_args(arguments).results
    return folder


def test_the_checkout_is_written_only_where_asked(cache: Path) -> None:
    assert parsed() == cache / "demo"
    assert parsed("--results", "here") == Path("here")
    assert parsed("--write") == ROOT / "results"


def test_without_a_cache_folder_it_is_the_homes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parsed() == tmp_path / ".cache" / "sglang-power" / "demo"


@pytest.mark.parametrize("module", MEASURING, ids=lambda module: module.__name__)
def test_every_measurement_has_the_options(
    module: Any, capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    with pytest.raises(SystemExit):
        module.main(["--help"])
    told = "".join(capsys.readouterr().out.split())
    assert f"(default:{cache}" in told
    assert "--write" in told


def test_a_demo_writes_beside_the_checkout(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its server and its figures are stubs."""

    @contextmanager
    def running(*_: Any) -> Iterator[Any]:
        yield SimpleNamespace(url="")

    async def evaluate(*_: Any) -> dict[str, Any]:
        return {}

    def drawn(_: Any, path: Path) -> None:
        path.write_bytes(b"")

    monkeypatch.setattr(demo, "running", running)
    monkeypatch.setattr(demo, "evaluate", evaluate)
    monkeypatch.setattr(demo, "check_claims", lambda _: {"it ran": True})
    monkeypatch.setattr(demo, "one_chain", lambda _: [])
    monkeypatch.setattr(demo, "one_tree", lambda _: "tree")
    monkeypatch.setattr(demo, "plots", SimpleNamespace(chain=drawn, demo=drawn))

    def committed() -> dict[Path, bytes]:
        files = [demo.README, *demo.RESULTS.rglob("*")]
        return {path: path.read_bytes() for path in files if path.is_file()}

    before = committed()
    assert demo.main(["--problems", "1"]) == 0
    assert {path.name for path in (cache / "demo").iterdir()} == {"demo.json", "demo.png", "chain.png"}
    assert committed() == before
