"""Asks which vulnerabilities are known of what is installed, and lists the licences: `make audit`.

pip-audit asks the package index, or OSV, and reports a package that the service does not know as *skipped*,
with status 0: an index without that service, a mirror for example, would pass every audit. So a release with
a known vulnerability is asked for first, and whoever does not name it has audited nothing. Imports nothing
of the plugin.

Exit status: 0 nothing is known of what is installed; 1 something is; 2 nothing was audited.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

CANARY: Final = "requests==2.19.0"
"""Sends credentials to other hosts (CVE-2018-18074); whoever knows anything knows that."""

OWN: Final = frozenset({"sglang-power", "sglang-torch-cpu"})
"""Distributions of this repository, which no index has."""

SERVICES: Final = ("pypi", "osv")

Report = dict[str, Any]


class NotAuditedError(Exception):
    """No service answered, or it knows nothing."""


def audited(tools: Path, service: str, arguments: Sequence[str]) -> Report:
    """Return pip-audit's report.

    Args:
        tools: folder of the program.
        service: that it asks.
        arguments: what it is asked about.

    Raises:
        NotAuditedError: there is none.
    """
    options = ["--format=json", "--progress-spinner=off", f"--vulnerability-service={service}"]
    command = [str(tools / "pip-audit"), *options, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        report: Report = json.loads(done.stdout)
    except json.JSONDecodeError:
        last = (done.stderr.strip().splitlines() or ["no report"])[-1]
        raise NotAuditedError(f"{service}: {last[:300]}") from None
    return report


def check_service(tools: Path, service: str) -> None:
    """Check that a service names a vulnerability that everybody knows.

    Raises:
        NotAuditedError: it does not.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "canary.txt"
        asked.write_text(f"{CANARY}\n")
        report = audited(tools, service, ["--requirement", str(asked), "--no-deps", "--disable-pip"])
    if not vulnerable(report):
        told = [each.get("skip_reason", "no vulnerability") for each in report["dependencies"]]
        raise NotAuditedError(f"{service}: asked about {CANARY}, it says: {'; '.join(told) or 'nothing'}")


def vulnerable(report: Report) -> list[str]:
    """Return a line for each known vulnerability of a report."""
    return [
        f"{each['name']} {each['version']}: {found['id']} {' '.join(found.get('aliases', ()))}, "
        f"fixed in {', '.join(found['fix_versions']) or 'no release'}"
        for each in report["dependencies"]
        for found in each.get("vulns", ())
    ]


def skipped(report: Report) -> list[str]:
    """Return a line for each distribution of others that was not audited."""
    return [
        f"{each['name']}: {each['skip_reason']}"
        for each in report["dependencies"]
        if "skip_reason" in each and each["name"] not in OWN
    ]


def answering(tools: Path) -> str:
    """Return the first service that can be asked.

    Raises:
        NotAuditedError: none can; says why of each.
    """
    problems = []
    for service in SERVICES:
        try:
            check_service(tools, service)
        except NotAuditedError as error:
            problems.append(str(error))
        else:
            return service
    raise NotAuditedError("\n".join(problems))


def licences(tools: Path, python: Path) -> list[str]:
    """Return a line per licence: how many distributions say so, and which where they are few."""
    command = [str(tools / "pip-licenses"), f"--python={python}", "--format=csv", "--from=mixed"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    counted = Counter(row["License"] for row in rows)
    return [
        f"{count:4d}  {licence[:60]:60}  "
        + ", ".join(row["Name"] for row in rows if row["License"] == licence)
        for licence, count in counted.most_common()
    ]


def main() -> int:
    """Print licences, then what is known of the installed; return the exit status."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--tools", type=Path, required=True, help="folder of pip-audit and pip-licenses")
    parser.add_argument("--python", type=Path, required=True, help="interpreter of what is audited")
    options = parser.parse_args()
    print("\n".join(line[:200] for line in licences(options.tools, options.python)), flush=True)
    try:
        service = answering(options.tools)
        program = "import sysconfig; print(sysconfig.get_path('purelib'))"
        found = subprocess.run([options.python, "-c", program], capture_output=True, text=True, check=True)
        report = audited(options.tools, service, ["--path", found.stdout.strip()])
    except NotAuditedError as error:
        print(f"NOTHING WAS AUDITED: no service tells vulnerabilities here\n{error}", file=sys.stderr)
        return 2
    left_out, known = skipped(report), vulnerable(report)
    print("\n".join([*known, *(f"not audited: {line}" for line in left_out)]))
    print(f"{len(report['dependencies'])} distributions by {service}: {len(known)} known vulnerabilities")
    if known:
        return 1
    return 2 if left_out else 0


if __name__ == "__main__":
    sys.exit(main())
