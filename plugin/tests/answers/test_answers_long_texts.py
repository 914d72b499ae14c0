"""Long texts: no pattern that reads answers takes time that grows with the square of a text.

Each text takes milliseconds where the time is linear and at least ten minutes where it is quadratic, so that
the limit, which the child process ends at, says something on any machine. No time is measured.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

SIZE = 300_000
LIMIT = 120.0
"""Seconds."""

BLANKS = " " * SIZE

GROUPS = ("9", "1,00", "1,", ",00", ",000", "1.000", ".000", "1.000,", "1 000", " 000", "1'")
RUNS = (*GROUPS, "1/", "2 1/2", "-", "$", "\u00bd")
"""What groups of digits may begin with and never end as, again and again."""

TEXTS = {
    "number": {run: run * (SIZE // len(run)) + "x" for run in RUNS},
    "choice": {"answer is": f"answer{BLANKS}x", "box": f"\\boxed{{{BLANKS}x"},
    "read_number": {"blanks": f"5{BLANKS}x", "currency": f"${BLANKS}5{BLANKS}$x"},
    "normal_form": {"ending": "." * SIZE + "x", "emphasis": "*" * SIZE + "a" * SIZE, "quotes": "'\"" * SIZE},
}

PROGRAM = """
import sys
from sglang_power.answers import EXTRACTORS
from sglang_power.answers.equivalence import normal_form
from sglang_power.answers.numerals import read_number

choice, number = EXTRACTORS["choice"].extract, EXTRACTORS["number"].extract
readers = {"choice": choice, "number": number, "read_number": read_number, "normal_form": normal_form}
readers[sys.argv[1]](sys.stdin.read())
"""


@pytest.mark.parametrize(("reader", "kind"), [(reader, kind) for reader in TEXTS for kind in TEXTS[reader]])
def test_the_time_is_linear(reader: str, kind: str) -> None:
    command = [sys.executable, "-c", PROGRAM, reader]
    subprocess.run(command, input=TEXTS[reader][kind], text=True, check=True, timeout=LIMIT)
