"""Checks the examples of deployment in `configs/`: manifests by schemas, the configuration inside them.

`make check` runs it. Schemas of Kubernetes' own kinds come with the package kubernetes-validate, strict: an
unknown field is an error. That of LeaderWorkerSet, a kind of its own project, stands in `schemas/`. Knows no
cluster.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import jsonschema
import kubernetes_validate
import yaml
from sglang_power.errors import ConfigError
from sglang_power.server.config import load_config

ROOT: Final = Path(__file__).parents[1]
MANIFESTS: Final = ROOT / "configs" / "kubernetes"
LEADER_WORKER_SET: Final = Path(__file__).parent / "schemas" / "leaderworkerset-v1.json"

VERSIONS: Final = ("1.31", "1.34", "1.37")
"""Releases of Kubernetes: the oldest that the examples are for, one between, the newest that the package
knows."""

Manifest = dict[str, Any]


class ManifestError(Exception):
    """A manifest that a cluster would refuse; the message names its kind, its name and the place."""


def manifests(folder: Path = MANIFESTS) -> Iterator[tuple[Path, Manifest]]:
    """Yield every object of a folder's YAML files, with its file."""
    for file in sorted(folder.glob("*.yaml")):
        for manifest in yaml.safe_load_all(file.read_text()):
            yield file, manifest


def check_manifest(manifest: Manifest, version: str) -> None:
    """Check one object against the schema of its kind.

    Raises:
        ManifestError: it does not fit, or its kind has no schema.
    """
    try:
        if manifest["kind"] == "LeaderWorkerSet":
            jsonschema.validate(manifest, json.loads(LEADER_WORKER_SET.read_text()))
            for pods in _pod_templates(manifest):
                kubernetes_validate.validate(pods, version, strict=True)
        else:
            kubernetes_validate.validate(manifest, version, strict=True)
    except jsonschema.ValidationError as error:
        raise _refused(manifest, f"{'.'.join(map(str, error.path))}: {error.message}") from error
    except kubernetes_validate.SchemaNotFoundError as error:
        raise _refused(manifest, error.message) from error


def _pod_templates(manifest: Manifest) -> Iterator[Manifest]:
    """The pod templates of a LeaderWorkerSet, each as an object of Kubernetes' own kind."""
    templates = manifest["spec"]["leaderWorkerTemplate"]
    for name in ("leaderTemplate", "workerTemplate"):
        if name in templates:
            yield {
                "apiVersion": "v1",
                "kind": "PodTemplate",
                "metadata": {"name": name.lower()},
                "template": templates[name],
            }


def _refused(manifest: Mapping[str, Any], problem: str) -> ManifestError:
    return ManifestError(f"{manifest.get('kind')} {manifest.get('metadata', {}).get('name')}: {problem}")


def check_configuration(manifest: Manifest) -> None:
    """Check the files of a ConfigMap as a server would read them.

    Raises:
        ManifestError: a server would not take one.
    """
    for text in manifest.get("data", {}).values():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "config.yaml"
            file.write_text(text)
            try:
                load_config(file, secrets=False)
            except ConfigError as error:
                raise _refused(manifest, str(error)) from error


def main() -> int:
    """Check all of them; print what is wrong, and return the exit status."""
    checked = 0
    try:
        for _, manifest in manifests():
            for version in VERSIONS:
                check_manifest(manifest, version)
            if manifest["kind"] == "ConfigMap":
                check_configuration(manifest)
            checked += 1
    except ManifestError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{checked} objects of {MANIFESTS.relative_to(ROOT)} fit Kubernetes {', '.join(VERSIONS)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
