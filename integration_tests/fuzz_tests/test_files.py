"""Files that people write or save, spoilt: readers take them, or refuse them by an error of the project.

`make fuzz`. Configurations with presets and rewards, experiments, saved responses and trace records; right
ones from `configs/` and the tests' data, with values replaced, removed, renamed or added, and texts that are
no YAML or JSON at all. Error rate 0; no server.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st
from sglang_power.errors import PowerError
from sglang_power.experiments.catalogue import read_experiment
from sglang_power.server.config import load_config
from sglang_power.viewer.page import rendered
from sglang_power.viewer.responses import read_record

from integration_tests.fuzz_tests.conftest import BODIES
from integration_tests.helpers.bodies import drawn, spoilt, texts

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
SAVED = ROOT / "plugin" / "tests" / "data"

SEED = 4052
COUNT = max(50, BODIES // 20)

Json = dict[str, Any]

BOMB = "a: &a [x, x, x, x, x, x, x, x]\\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 8)}]\\n" for i in range(8)
)
"""Eight levels of eight references: small as a file, 130 million values where somebody copies it."""

ROUGH = (
    "",
    "[",
    "a: b: c",
    "- ",
    "!!python/object/apply:os.system ['true']",
    "a: *a",
    "&a [*a]",
    BOMB.replace("\\n", "\n"),
    "\ufeffpresets: {}",
    "presets: !!set {a, b}",
    "? [a]\n: b",
    "2026-13-45",
    "a: 2026-02-30",
    "a: .inf",
    "\t",
    "{" * 3000,
    "[" * 3000,
    "a: " + "9" * 5000,
    "presets: {a: {sampler: power, alpha: 1e999}}",
    "null",
    "0",
    '"a"',
)
"""Texts that no tree of values gives."""


def yaml_files(*patterns: str) -> list[Json]:
    """The right files."""
    return [
        yaml.safe_load(file.read_text()) for pattern in patterns for file in sorted(CONFIGS.glob(pattern))
    ]


def as_yaml(document: Any) -> str:
    """A document as people write it; what YAML cannot say is written as JSON."""
    try:
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    except (yaml.YAMLError, ValueError):
        return json.dumps(document)


def of_files(*patterns: str) -> st.SearchStrategy[str]:
    """Spoilt YAML files."""
    right = st.sampled_from(yaml_files(*patterns))
    return spoilt(right).map(as_yaml) | right.map(as_yaml) | st.sampled_from(ROUGH) | texts()


def of_saved(*names: str) -> st.SearchStrategy[str]:
    """Spoilt JSON files."""
    right = st.sampled_from([json.loads((SAVED / name).read_text()) for name in names])
    return spoilt(right).map(json.dumps) | right.map(json.dumps) | st.sampled_from(ROUGH) | texts()


def _configuration(path: Path) -> None:
    load_config(path, secrets=False)


def _trace(path: Path) -> None:
    assert "<html" in rendered(read_record(path.read_bytes()), source="a file")


KINDS: dict[str, tuple[Callable[[Path], Any], st.SearchStrategy[str]]] = {
    "presets": (_configuration, of_files("chat.yaml", "power-*.yaml", "fast-*.yaml", "policies.yaml")),
    "rewards": (_configuration, of_files("rewards.yaml")),
    "experiments": (read_experiment, of_files("experiments/*.yaml")),
    "traces": (
        _trace,
        of_saved("chain_record.json", "tree_record.json", "cot_response.json", "branch_response.json"),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_spoilt_file_is_taken_or_refused_by_name(kind: str, tmp_path: Path, record: Json) -> None:
    read, strategy = KINDS[kind]
    path, told, wrong = tmp_path / "file", Counter[str](), []
    for text in [*ROUGH, *drawn(strategy, COUNT, SEED)]:
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            read(path)
        except PowerError as error:
            told[type(error).__name__] += 1
            if not str(error).strip():
                wrong.append((text[:500], "an error without a word"))
        except Exception as error:  # noqa: BLE001  (whatever comes is what the test is about)
            wrong.append((text[:500], repr(error)[:300]))
        else:
            told["taken"] += 1
    record["files"].update({f"{kind} {outcome}": count for outcome, count in told.items()})
    print(kind, dict(told))
    assert wrong == [], f"{len(wrong)} of {COUNT}"
    assert told["taken"] > 0
    assert told.total() > told["taken"]
