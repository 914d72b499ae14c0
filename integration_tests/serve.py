"""`make serve`: a built-in model on 127.0.0.1:30000 until interrupted; `pivot`, unless another one is named.

    python -m integration_tests.serve --model arithmetic --page-size 1

A real model is served from where `make real` left it. What is no option of ours goes to SGLang.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from integration_tests.real.catalogue import MODELS
from integration_tests.real.preparing import folder_of
from integration_tests.server import ARITHMETIC_MODEL, PIVOT_MODEL, PROSE_MODEL, ServerSpec, command_line

BUILT_IN: Final = {"pivot": PIVOT_MODEL, "prose": PROSE_MODEL, "arithmetic": ARITHMETIC_MODEL}
"""Models whose weights are committed, by the names that they are served under."""


def command_of(argv: Sequence[str] | None = None) -> list[str]:
    """Return the command that serves what a command line asks for; it ends where that model is not there."""
    parser = argparse.ArgumentParser(
        description="Serve a model on 127.0.0.1:30000 until interrupted.", allow_abbrev=False
    )
    parser.add_argument("--model", choices=[*BUILT_IN, *MODELS], default="pivot")
    options, further = parser.parse_known_args(argv)
    folder: Path = BUILT_IN.get(options.model) or folder_of(options.model)
    if not folder.is_dir():
        parser.error(f"argument --model: {options.model} is not there: run `make real MODEL={options.model}`")
    return command_line(ServerSpec(folder, options.model, further), port=30000)


def main() -> None:
    """Become the server."""
    command = command_of()
    print("$ " + " ".join(command), flush=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
