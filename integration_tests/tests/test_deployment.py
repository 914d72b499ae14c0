"""The examples of deployment are whole; the guides name every variable, cap, metric and alert of the code."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ab_metrics_child
import pytest
import yaml
from pydantic import BaseModel
from sglang_power.server.config import KeyLimit, Limits

from integration_tests import capacity, manifests
from integration_tests.documents import GUIDES, ROOT
from integration_tests.manifests import Manifest, ManifestError, check_configuration, check_manifest

OPERATIONS = (GUIDES / "operations.md").read_text()
UNIT = ROOT / "configs" / "systemd" / "sglang-power.service"
NEWEST = manifests.VERSIONS[-1]
SYSTEMD = shutil.which("systemd-analyze")

EVERY = [(f"{path.name}-{one['kind']}", one) for path, one in manifests.manifests()]


def named(kind: str, file: str) -> Manifest:
    (found,) = [
        one for path, one in manifests.manifests() if one["kind"] == kind and path.name == f"{file}.yaml"
    ]
    return copy.deepcopy(found)


def containers(manifest: Any) -> Iterator[Manifest]:
    """Every container of an object, wherever its pods are described."""
    if isinstance(manifest, dict):
        yield from manifest.get("containers", [])
        for value in manifest.values():
            yield from containers(value)


def test_every_manifest_fits_its_schema() -> None:
    assert manifests.main() == 0
    assert {one["kind"] for _, one in EVERY} >= {"Deployment", "Service", "ConfigMap", "LeaderWorkerSet"}


WRONG: list[tuple[str, str, Any, str]] = [
    ("Deployment", "spec.template.spec.containers.0.readinesProbe", {}, "readinesProbe"),
    ("Deployment", "spec.replicas", "two", "two"),
    ("Deployment", "spec.template.spec.containers.0.livenessProbe.timeoutSecs", 5, "timeoutSecs"),
    ("Service", "spec.ports.0.port", "http", "http"),
    ("LeaderWorkerSet", "spec.leaderWorkerTemplate.sise", 2, "sise"),
    ("LeaderWorkerSet", "spec.leaderWorkerTemplate.restartPolicy", "Always", "Always"),
    ("LeaderWorkerSet", "spec.leaderWorkerTemplate.workerTemplate.spec.containers.0.imge", "x", "imge"),
]


@pytest.mark.parametrize(("kind", "place", "value", "told"), WRONG, ids=[place for _, place, _, _ in WRONG])
def test_control_a_wrong_manifest_is_refused(kind: str, place: str, value: Any, told: str) -> None:
    manifest = named(kind, "leader-worker-set" if kind == "LeaderWorkerSet" else "server")
    *way, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    at: Any = manifest
    for part in way:
        at = at[part]
    at[last] = value
    with pytest.raises(ManifestError, match=told):
        check_manifest(manifest, NEWEST)


def test_control_a_kind_without_a_schema_is_refused() -> None:
    with pytest.raises(ManifestError, match="Deploymint"):
        check_manifest({**named("Deployment", "server"), "kind": "Deploymint"}, NEWEST)


def test_control_a_configuration_that_no_server_takes_is_refused() -> None:
    manifest = named("ConfigMap", "server")
    manifest["data"]["config.yaml"] = "presets: {chat: {sampler: powr}}"
    with pytest.raises(ManifestError, match="powr"):
        check_configuration(manifest)


@pytest.mark.parametrize("manifest", [one for _, one in EVERY], ids=[name for name, _ in EVERY])
def test_selectors_select_and_probes_can_succeed(manifest: Manifest) -> None:
    """A selector that matches no label of its own pods is refused by the cluster only, or by nobody."""
    spec = manifest.get("spec", {})
    if manifest["kind"] == "Deployment":
        assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    for container in containers(manifest):
        ports = {port["name"] for port in container["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = container.get(probe, {})
            assert asked.get("httpGet", {}).get("port", "http") in ports
            if container["name"] == "server" and "httpGet" in asked:
                assert asked["timeoutSeconds"] > 1, "/health takes a second at least"


def test_services_and_policies_select_pods_that_there_are() -> None:
    labels = [
        one["spec"]["template"]["metadata"]["labels"] for _, one in EVERY if one["kind"] == "Deployment"
    ]
    for _, one in EVERY:
        spec = one.get("spec", {})
        if one["kind"] == "Service" and one["metadata"]["name"] != "sglang-power-groups":
            assert spec["selector"] in labels
        if one["kind"] in ("NetworkPolicy", "PodDisruptionBudget"):
            assert spec.get("podSelector", spec.get("selector"))["matchLabels"] in labels
    router = " ".join(named("Deployment", "router")["spec"]["template"]["spec"]["containers"][0]["args"])
    assert "--selector app=sglang-power " in router
    assert {"app": "sglang-power"} in labels


@pytest.mark.long  # imports SGLang
@pytest.mark.parametrize("manifest", [one for name, one in EVERY if "Deployment" in name or "Leader" in name])
def test_sglang_knows_every_flag_of_its_servers(manifest: Manifest) -> None:
    servers = [each for each in containers(manifest) if each["command"][-1] == "sglang.launch_server"]
    for server in servers:
        program = (
            "import argparse, sys\nfrom sglang.srt.server_args import ServerArgs\n"
            "parser = argparse.ArgumentParser()\nServerArgs.add_cli_args(parser)\n"
            "parser.parse_args(sys.argv[1:])"
        )
        told = subprocess.run(
            [sys.executable, "-c", program, *server["args"]], capture_output=True, check=False
        )
        assert told.returncode == 0, told.stderr[-2000:]


@pytest.mark.skipif(SYSTEMD is None, reason="systemd-analyze is not on PATH")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(re.sub(r"/opt/sglang-power/bin/\S+", "/bin/true", UNIT.read_text()))
    assert _verified(unit) == ""
    unit.write_text(unit.read_text().replace("KillMode=mixed", "KilMode=mixed"))
    assert "KilMode" in _verified(unit)


def _verified(unit: Path) -> str:
    told = subprocess.run(
        [str(SYSTEMD), "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    return "\n".join(line for line in told.stderr.splitlines() if unit.name in line)


# --- the guides --------------------------------------------------------------------------------------


def test_the_guide_names_every_variable_that_the_code_reads() -> None:
    folders = (
        ROOT / "plugin" / "sglang_power",
        ROOT / "kernels" / "sglang_power_kernels",
        ROOT / "integration_tests",
    )
    texts = [file.read_text() for folder in folders for file in folder.rglob("*.py")]
    read = {name for text in texts for name in re.findall(r'"(SGLANG_POWER_[A-Z_]+)"', text)}
    assert read >= {"SGLANG_POWER_CONFIG", "SGLANG_POWER_UNIT_KEY", "SGLANG_POWER_FEEDBACK_KEY"}
    assert {name for name in read if f"`{name}`" not in OPERATIONS} == set()


@pytest.mark.parametrize("caps", [Limits, KeyLimit])
def test_the_guide_names_every_cap_with_its_default(caps: type[BaseModel]) -> None:
    section = OPERATIONS.split("\n## Caps\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    rows = {name: line for line in lines for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    for name, field in caps.model_fields.items():
        if caps is KeyLimit:
            assert f"{name}:" in section
        else:
            default = "none" if field.default is None else str(field.default)
            assert default in rows[name].split("|")[2], name


def test_the_guide_names_every_metric_with_its_labels() -> None:
    command = [sys.executable, ab_metrics_child.__file__, "registered"]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    families: dict[str, list[str]] = {}
    for name, labels in json.loads(told.stdout).items():
        families[re.sub(r"_(bucket|count|sum)$", "", name)] = [label for label in labels if label != "le"]
    assert len(families) > 20
    for name, labels in families.items():
        (row,) = [line for line in OPERATIONS.splitlines() if line.startswith(f"| `{name}` |")]
        assert re.findall(r"`(\w+)`", row.split("|")[2]) == labels


def test_the_guide_names_every_alert_with_its_severity() -> None:
    loaded = yaml.safe_load((ROOT / "configs" / "monitoring" / "alerts.yaml").read_text())
    rules = {
        rule["alert"]: rule["labels"]["severity"] for group in loaded["groups"] for rule in group["rules"]
    }
    found = dict(re.findall(r"^\| `(SglangPower\w+)` \| (\w+) \|", OPERATIONS, flags=re.MULTILINE))
    assert found == rules


def test_the_runbook_has_at_least_ten_faults_that_are_numbered() -> None:
    headings = re.findall(r"^## (\d+)\. ", (GUIDES / "runbook.md").read_text(), flags=re.MULTILINE)
    assert [int(number) for number in headings] == list(range(1, len(headings) + 1))
    assert len(headings) >= 10


def test_the_table_of_capacity_is_that_of_the_committed_measurement() -> None:
    guide = capacity.GUIDE.read_text()
    assert guide == capacity.renewed(guide), "python -m integration_tests.capacity --write"
    assert re.search(r"\| smc \| \d+ \| \d+ \|", guide)
