"""The folder of a run: torn lines, full disks, other runs' answers. Error rate 0."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from eval_answers import arm, by_key, kept, run
from sglang_power.errors import ConfigError, HostError
from sglang_power.evaluation.folder import ANSWERS, RUN, Folder
from sglang_power.evaluation.records import Run

ARMS = [arm("plain", 2), arm("greedy")]


def filled(path: Path, count: int = 3) -> Folder:
    folder = Folder(path)
    folder.begin(run(ARMS, ["a", "b", "c"]), fresh=False)
    with folder:
        for number in range(count):
            folder.append(kept("abc"[number], "plain"))
    return folder


def test_answers_come_back_as_they_were(tmp_path: Path) -> None:
    folder = filled(tmp_path / "new" / "folder")
    assert folder.answers() == by_key([kept(item, "plain") for item in "abc"])
    assert folder.run() == run(ARMS, ["a", "b", "c"])


@pytest.mark.parametrize("left", [1, 20, -1])
def test_a_last_line_that_was_cut_off_is_asked_again(tmp_path: Path, left: int) -> None:
    """Whatever is left of it: a letter, some, or all but the end of the line."""
    path = filled(tmp_path).path / ANSWERS
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], lines[1], lines[2][:left]]))
    folder = Folder(tmp_path)
    assert {key[0] for key in folder.answers()} == {"a", "b"}
    with folder:
        folder.append(kept("c", "plain", text="again"))
    assert folder.answers()["c", "plain", 0].text == "again"
    assert len(path.read_bytes().splitlines()) == 3


def test_a_broken_line_in_the_midst_is_named_and_the_file_stays(tmp_path: Path) -> None:
    path = filled(tmp_path).path / ANSWERS
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], lines[1][:30], *lines[2:]]))
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"answers\.jsonl, line 2: not an answer"):
        Folder(tmp_path).answers()
    assert path.read_bytes() == before


@contextmanager
def room(size: int) -> Iterator[None]:
    """No file of this process can grow beyond so many bytes: the kernel refuses, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_what_is_kept_stays_whole(tmp_path: Path) -> None:
    folder = filled(tmp_path, 1)
    path = tmp_path / ANSWERS
    size = path.stat().st_size
    with folder, room(size + 100), pytest.raises(HostError, match=r"answers\.jsonl cannot be written: File"):
        folder.append(kept("b", "plain"))
    assert path.stat().st_size == size, "no half of a line is left"
    with folder:
        folder.append(kept("b", "plain"))
    assert {key[0] for key in folder.answers()} == {"a", "b"}


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        Folder(tmp_path / "file" / "below").begin(run(ARMS, ["a"]), fresh=False)


# --- going on ---

OTHERS = {
    "model": {"model": "other"},
    "seed": {"seed": 1},
    "max_tokens": {"max_tokens": 17},
    "versions": {"versions": {"sglang": "0.5.24"}},
    "item 'a'": {"items": dict.fromkeys("abc", "changed")},
    "plain had": {"arms": (arm("plain", value=0.9),)},
}


@pytest.mark.parametrize(("problem", "changes"), OTHERS.items(), ids=list(OTHERS))
def test_answers_of_another_run_are_not_mixed_in(
    tmp_path: Path, problem: str, changes: dict[str, object]
) -> None:
    folder = filled(tmp_path)
    before = (tmp_path / RUN).read_bytes()
    other = Run.model_validate({**dict(run(ARMS, ["a", "b", "c"])), **changes})
    with pytest.raises(ConfigError, match=f"holds answers of another run: {problem}.*--fresh"):
        folder.begin(other, fresh=False)
    assert (tmp_path / RUN).read_bytes() == before
    folder.begin(other, fresh=True)
    assert folder.answers() == {}


def test_items_arms_and_samples_may_be_added(tmp_path: Path) -> None:
    folder = filled(tmp_path)
    more = run([arm("plain", 4), arm("smc")], ["a", "b", "c", "d"], command="more", notes=("n",))
    joined = folder.begin(more, fresh=False)
    assert [(each.name, each.samples) for each in joined.arms] == [("plain", 4), ("greedy", 1), ("smc", 1)]
    assert list(joined.items) == ["a", "b", "c", "d"]
    fewer = folder.begin(run([arm("plain", 1)], ["a"]), fresh=False)
    assert (fewer.arms, list(fewer.items), fewer.notes) == (joined.arms, ["a", "b", "c", "d"], ("n",))


def test_a_run_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / RUN).write_text("{}")
    with pytest.raises(ConfigError, match=r"run\.json: task: Field required"):
        Folder(tmp_path).run()
