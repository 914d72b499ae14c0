"""The documents hold what they promise: links lead somewhere, tables are those that were measured, commands
run. No server; those that ask one stand in test_documents_server.py. Error rate 0.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter
from sglang_power import cli
from sglang_power.experiments.model import Experiment
from sglang_power.policies import policies
from sglang_power.request import table
from sglang_power.server.config import ServerConfig

from integration_tests import demo
from integration_tests.documents import (
    CPU_ONLY,
    DOCUMENTS,
    GUIDES,
    LANGUAGES,
    README,
    ROOT,
    SHOWN,
    Block,
    all_blocks,
    anchors,
    blocks,
    broken,
    links,
    marks,
    run,
    workplace,
)

NOT_RUN = 19
"""Blocks that no test runs, each with its reason: installations, clusters, other people's users, tools."""

LINKED = (*DOCUMENTS, ROOT / "CHANGELOG.md", ROOT / "kernels" / "benchmarks" / "README.md")


def written(folder: Path, text: str) -> Path:
    document = folder / "page.md"
    document.write_text(text)
    return document


def named(document: Path) -> str:
    return str(document.relative_to(ROOT))


@pytest.mark.parametrize("document", LINKED, ids=named)
def test_every_link_leads_to_a_file_and_an_anchor(document: Path) -> None:
    assert broken(document) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# Some `code`, a heading\n")
    page = written(
        tmp_path,
        "# Here\n[a](there.md) [b](there.md#some-code-a-heading) [c](#here) [d](https://example.org)\n\n"
        "in `[code](nowhere.md)` none; ![e](gone.png) [f](there.md#gone) [g](#gone)\n\n"
        '<img src="lost.png">\n',
    )
    assert broken(page) == ["gone.png", "there.md#gone", "#gone", "lost.png"]


def test_a_heading_that_stands_twice_has_two_anchors(tmp_path: Path) -> None:
    assert anchors(written(tmp_path, "# A\n## B: c\n## B: c\n")) == {"a", "b-c", "b-c-1"}


def test_the_readme_is_short() -> None:
    lines = README.read_text().splitlines()
    assert len(lines) <= 120
    assert [line for line in lines if len(line) > 200] == []


@pytest.mark.parametrize("index", [README, GUIDES / "README.md"], ids=named)
def test_every_guide_is_in_the_index(index: Path) -> None:
    found = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
    guides = {guide for guide in GUIDES.glob("*.md") if guide.name != "README.md"}
    assert guides <= found


def test_blocks_have_a_language_that_says_whether_they_run() -> None:
    assert [str(block) for block in all_blocks() if block.language not in (*LANGUAGES, *SHOWN)] == []


def test_as_many_blocks_are_left_out_as_were_agreed_on() -> None:
    left_out = [block for block in all_blocks() if block.not_run is not None]
    assert [str(block) for block in left_out if block.language not in LANGUAGES] == []
    assert len(left_out) == sum(map(marks, DOCUMENTS)), "a mark stands right before its block, with a reason"
    assert len(left_out) == NOT_RUN, [str(block) for block in left_out]


def test_a_mark_speaks_of_the_block_behind_it(tmp_path: Path) -> None:
    page = written(
        tmp_path,
        "- a list\n  <!-- not run: a cluster -->\n  ```bash\n  first\n  ```\n\n```bash\nsecond\n```\n",
    )
    assert [(block.text, block.not_run) for block in blocks(page)] == [
        ("first\n", "a cluster"),
        ("second\n", None),
    ]


@pytest.mark.long
@pytest.mark.parametrize(
    "block", [block for block in all_blocks() if block.runs and not block.asks_server], ids=str
)
def test_what_needs_no_server_runs(block: Block, tmp_path: Path) -> None:
    run(block, workplace(tmp_path))


def test_on_a_gpu_the_engine_is_not_told_of_the_cpu() -> None:
    assert sum(CPU_ONLY in block.text for block in all_blocks() if block.runs) == 1


def test_a_block_that_fails_fails_the_test(tmp_path: Path) -> None:
    place = workplace(tmp_path)
    for language, text in (("bash", "false\ntrue"), ("bash", "false | true"), ("python", "1 / 0")):
        with pytest.raises(AssertionError, match="failed"):
            run(Block(README, 1, language, text, None), place)
    assert run(Block(README, 1, "bash", "command -v sglang-power", None), place).endswith("sglang-power\n")


@pytest.mark.parametrize("block", [block for block in all_blocks() if block.language == "yaml"], ids=str)
def test_a_configuration_that_is_shown_is_taken(block: Block, tmp_path: Path) -> None:
    """Sections of a server's file as a whole; fields of an experiment one by one."""
    shown = yaml.safe_load(block.text)
    assert shown
    if shown.keys() <= ServerConfig.model_fields.keys():
        file = tmp_path / "server.yaml"
        file.write_text(block.text)
        assert cli.main(["config", "check", str(file)]) == 0
    else:
        for name, value in shown.items():
            annotation = Experiment.model_fields[name].annotation
            assert annotation is not None
            assert TypeAdapter(annotation).validate_python(value).model_dump(exclude_none=True) == value


def commands(program: str) -> set[tuple[str, ...]]:
    """Return the commands of a program that the documents name: the words right behind it."""
    found = set()
    for document in (*DOCUMENTS, ROOT / "CHANGELOG.md"):
        for words in re.findall(rf"[`\n(| ]{program}((?: [^\s`]+)+)", document.read_text()):
            plain: list[str] = []
            for word in words.split():
                if not re.fullmatch("[a-z][a-z-]*", word):
                    break
                plain.append(word)
            found.add(tuple(plain[:2]))
    return found - {()}


def test_targets_of_the_makefile_are_there() -> None:
    found = {words[0] for words in commands("`make")}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {"demo", "test", "serve"} <= found <= targets


@pytest.mark.parametrize("words", sorted(commands("`sglang-power")), ids=" ".join)
def test_commands_in_the_text_are_commands(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--help"])
    assert ended.value.code == 0, capsys.readouterr().err


SAMPLERS = (GUIDES / "samplers.md").read_text()


@pytest.mark.parametrize("model", table.BUILT_IN, ids=lambda model: str(model.name()))
def test_the_guide_names_every_parameter_of_a_sampler(model: type) -> None:
    name = model.name()  # type: ignore[attr-defined]
    shared, own = SAMPLERS.split("## power\n")[0], SAMPLERS.split(f"\n## {name}\n")[1].split("\n## ")[0]
    fields = set(model.model_fields) - {"sampler"}  # type: ignore[attr-defined]
    assert {field for field in fields if f"`{field}`" not in shared + own} == set()
    assert f'"sampler": "{name}"' in own
    assert "**Cost.**" in own
    assert "**Law.**" in own


def test_the_guide_names_every_policy_and_its_parameters() -> None:
    text = (GUIDES / "policies.md").read_text()
    wanted = {name for policy in policies().values() for name in (policy.name(), *policy.model_fields)}
    assert {name for name in wanted - {"sampler", "seed"} if f"`{name}`" not in text} == {
        "entropy_threshold",
        "varentropy_threshold",
    }


def between(document: Path, mark: str) -> str:
    return document.read_text().split(f"<!-- {mark} -->\n")[1].split(f"\n<!-- /{mark} -->")[0]


def test_the_tables_are_those_of_the_committed_measurement() -> None:
    record = json.loads((demo.RESULTS / "demo.json").read_text())
    where = demo.caption(record)
    assert between(README, "demo") == f"{demo.short_table(record['rows'])}\n\n{where}"
    assert between(demo.GUIDE, "demo").startswith(f"{demo.table(record['rows'])}\n\n{where}\n")


def test_a_measurement_renews_the_documents_between_their_marks(tmp_path: Path) -> None:
    readme, guide = (
        Path(shutil.copy(path, tmp_path / str(i))) for i, path in enumerate((README, demo.GUIDE))
    )
    record = json.loads((demo.RESULTS / "demo.json").read_text())
    tree = between(demo.GUIDE, "tree").removeprefix("```text\n").removesuffix("\n```")
    demo.write_documents(record | {"problems": 60}, tree, readme, guide)
    assert "60 problems per family" in between(readme, "demo")
    assert "60 problems per family" in between(guide, "demo")
    demo.write_documents(record, tree, readme, guide)
    assert (readme.read_text(), guide.read_text()) == (README.read_text(), demo.GUIDE.read_text())
