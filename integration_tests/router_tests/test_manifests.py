"""The router of the Kubernetes example is started with flags that it knows."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest

from integration_tests import manifests
from integration_tests.router_tests.cluster import ROUTER_PYTHON

PARSE = (
    "import sys; from sglang_router.launch_router import parse_router_args; parse_router_args(sys.argv[1:])"
)


def parsed(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [os.environ[ROUTER_PYTHON], "-c", PARSE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def arguments_of_the_example() -> list[str]:
    found: list[Any] = [
        container["args"]
        for path, manifest in manifests.manifests()
        if path.name == "router.yaml" and manifest["kind"] == "Deployment"
        for container in manifest["spec"]["template"]["spec"]["containers"]
    ]
    (arguments,) = found
    return [str(each) for each in arguments]


def test_the_router_knows_every_flag_of_the_example() -> None:
    told = parsed(arguments_of_the_example())
    assert told.returncode == 0, told.stderr


def test_control_a_flag_that_it_does_not_know_is_refused() -> None:
    told = parsed([*arguments_of_the_example(), "--worker-selector=app"])
    assert told.returncode != 0
    assert "--worker-selector" in told.stderr


@pytest.mark.parametrize("flag", ["--service-discovery", "--selector"])
def test_the_example_finds_its_servers(flag: str) -> None:
    assert flag in arguments_of_the_example()
