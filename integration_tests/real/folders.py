"""The manifest of a converted folder: what it was made from, and the checksum of every file in it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from integration_tests.real.wheels import sha256_of

__all__ = ["Manifest", "fault", "seal"]

NAME: Final = "manifest.json"


class Manifest(BaseModel):
    """What a folder holds.

    Args:
        recipe: a name that changes whenever the conversion or its source does.
        files: the sha256 of each file by its name, in hexadecimal.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: str
    files: dict[str, str]


def seal(folder: Path, recipe: str) -> None:
    """Write the manifest of a folder that is complete."""
    manifest = Manifest(recipe=recipe, files=_checksums(folder))
    (folder / NAME).write_text(manifest.model_dump_json(indent=1) + "\n")


def fault(folder: Path, recipe: str) -> str | None:
    """Return why a folder cannot be used; None where it is just what was written by this recipe."""
    path = folder / NAME
    if not path.is_file():
        return "it is not there yet" if not folder.exists() else f"it has no {NAME}"
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        return f"{NAME} cannot be read: {error.errors()[0]['msg']}"
    if manifest.recipe != recipe:
        return f"it was made by {manifest.recipe}, not by {recipe}"
    found = _checksums(folder)
    changed = sorted(
        name for name in {*found, *manifest.files} if found.get(name) != manifest.files.get(name)
    )
    return f"not as they were written: {', '.join(changed)}" if changed else None


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / NAME)
    return {str(path.relative_to(folder)): sha256_of(path) for path in files}
