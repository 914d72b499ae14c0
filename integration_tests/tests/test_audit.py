"""An audit that nobody answers fails. The services and pip-audit are scripted: tests reach no index."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

KNOWN = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.0"]}
CLEAN = {"name": "sound", "version": "1.0", "vulns": []}
WEAK = {"name": "weak", "version": "1.0", "vulns": [KNOWN]}
GONE = {"name": "elsewhere", "skip_reason": "Dependency not found on PyPI"}
OWN = {"name": "sglang-power", "skip_reason": "Dependency not found on PyPI"}

PROGRAM = """#!{python}
import json, sys
told = json.load(open({told!r}))
service = [word.partition("=")[2] for word in sys.argv if word.startswith("--vulnerability-service")][0]
answer = told[service]["canary" if "--requirement" in sys.argv else "installed"]
if answer is None:
    sys.exit("cannot be reached")
print(json.dumps({{"dependencies": answer, "fixes": []}}))
"""


def run(folder: Path, **services: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """The audit, where each service answers as told; None where it cannot be reached."""
    told = {"pypi": {"canary": None, "installed": None}, "osv": {"canary": None, "installed": None}}
    (folder / "told.json").write_text(json.dumps(told | services))
    for name, program in (
        ("pip-audit", PROGRAM.format(python=sys.executable, told=str(folder / "told.json"))),
        ("pip-licenses", f'#!{sys.executable}\nprint("Name,Version,License\\nsound,1.0,MIT")\n'),
    ):
        (folder / name).write_text(program)
        (folder / name).chmod(0o755)
    options = ["--tools", str(folder), "--python", sys.executable]
    command = [sys.executable, "-m", "integration_tests.audit", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("installed", "status"),
    [([CLEAN], 0), ([CLEAN, OWN], 0), ([CLEAN, WEAK], 1), ([CLEAN, GONE], 2), ([WEAK, GONE], 1)],
    ids=["clean", "own", "weak", "skipped", "weak-and-skipped"],
)
def test_the_status_says_what_is_known(installed: list[dict[str, Any]], status: int, tmp_path: Path) -> None:
    done = run(tmp_path, pypi={"canary": [WEAK], "installed": installed})
    assert done.returncode == status, done.stderr
    assert "MIT" in done.stdout
    assert ("PYSEC-1" in done.stdout) == (WEAK in installed)


@pytest.mark.parametrize("canary", [None, [GONE], [CLEAN]], ids=["away", "knows-no-package", "knows-nothing"])
def test_control_a_service_that_knows_nothing_passes_nobody(canary: Any, tmp_path: Path) -> None:
    """pip-audit itself ends with 0 there."""
    done = run(tmp_path, pypi={"canary": canary, "installed": [CLEAN]})
    assert done.returncode == 2
    assert "NOTHING WAS AUDITED" in done.stderr


def test_another_service_is_asked_where_the_first_is_away(tmp_path: Path) -> None:
    done = run(tmp_path, osv={"canary": [WEAK], "installed": [CLEAN]})
    assert (done.returncode, "by osv" in done.stdout) == (0, True)
