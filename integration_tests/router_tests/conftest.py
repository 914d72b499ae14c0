"""One cluster for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from integration_tests.router_tests.cluster import Cluster, cluster


@pytest.fixture(scope="session")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two servers behind SGLang's router."""
    with cluster(tmp_path_factory.mktemp("routed")) as running:
        yield running
