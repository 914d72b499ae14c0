"""The command line that all programs share."""

from __future__ import annotations

import argparse
from typing import Any

import sglang as sgl


def main(program: Any, prompt: str, variable: str) -> None:
    """Run a program of one argument on one prompt, and print what it answers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", default="http://127.0.0.1:30000")
    parser.add_argument("--prompt", default=prompt)
    options = parser.parse_args()
    state = program.run(options.prompt, backend=sgl.RuntimeEndpoint(options.url))
    print(state[variable])
