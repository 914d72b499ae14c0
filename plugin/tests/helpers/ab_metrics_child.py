"""Processes that register or count metrics: prometheus_client keeps one registry per process for ever."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from typing import Any

from sglang_power.experiments import counters as experiment_metrics
from sglang_power.experiments.counters import Counters
from sglang_power.experiments.model import Experiment
from sglang_power.experiments.records import Completion, Enrolment, RequestOutcome, ShadowRun, TokenCounts
from sglang_power.server import metrics as serving_metrics

SAMPLES = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_count", "_sum"]}


def experiment() -> Experiment:
    """Two arms and a shadow."""
    arms = [
        {"name": "plain", "sampler": {"sampler": "none"}, "weight": 5000, "control": "plain"},
        {"name": "power", "sampler": {"preset": "power"}, "weight": 5000},
        {"name": "deep", "sampler": {"preset": "deep"}, "weight": 0, "shadow": True},
    ]
    values: dict[str, Any] = {
        "name": "first",
        "owner": "o",
        "hypothesis": "h",
        "unit": {"header": "x-user"},
        "arms": arms,
        "metrics": {"thumbs": {"source": "feedback", "absent": 0.0}},
        "primary": {"metric": "thumbs", "min_effect": 0.0},
        "shadow": {"tokens_per_hour": 1000},
    }
    return Experiment.model_validate_json(json.dumps(values))


def enrolment(arm: str) -> Enrolment:
    """A line as the server writes it."""
    return Enrolment(
        at=0.0,
        exposure_id="0" * 32,
        experiment="first",
        phase=0,
        config="c",
        unit="u",
        arm=arm,
        model="m",
        endpoint="chat",
        stream=False,
        plugin="1",
        sglang="2",
    )


def completion(arm: str, outcome: RequestOutcome, e2e_s: float) -> Completion:
    """Of 10 decoded and 3 prefilled tokens."""
    return Completion(
        at=0.0,
        exposure_id="0" * 32,
        experiment="first",
        arm=arm,
        outcome=outcome,
        tokens=TokenCounts(decoded=10, prefilled=3),
        e2e_s=e2e_s,
    )


def shadow_run(arm: str) -> ShadowRun:
    """Of 7 decoded and 2 prefilled tokens."""
    return ShadowRun(
        at=0.0,
        exposure_id="0" * 32,
        experiment="first",
        arm=arm,
        served="plain",
        outcome="ok",
        tokens=TokenCounts(decoded=7, prefilled=2),
        e2e_s=1.0,
    )


def count(enabled: bool, phase: int) -> None:
    """Everything that can be counted, once or twice."""
    counters, first = Counters(enabled), experiment()
    counters.enrolled(first, enrolment("power"))
    counters.enrolled(first, enrolment("power"))
    counters.not_enrolled(first, "greedy")
    counters.not_enrolled(first, "provider_timeout")
    counters.completed(first, completion("power", "ok", 0.2))
    counters.completed(first, completion("power", "deadline", 5000.0))
    counters.shadow_ran(first, shadow_run("deep"))
    counters.feedback("accepted")
    counters.reload_problems(2)
    counters.log_trouble("write", 1)
    counters.log_trouble("sync", 0)
    counters.changed(first, phase, enrolling=phase == 0)
    second = first.model_copy(update={"name": "second"})
    counters.changed(second, 0, enrolling=True)
    for name in ("second", "never-loaded"):
        counters.removed(name)


def count_in_two_workers() -> dict[str, float]:
    """Samples as a scrape of a server with two tokenizer workers sees them; the second knows of a kill."""
    for phase in (0, 1):
        worker = multiprocessing.get_context("fork").Process(target=count, args=(True, phase))
        worker.start()
        worker.join()
        assert worker.exitcode == 0
    from prometheus_client import CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return {
        ",".join([sample.name, *(sample.labels[label] for label in sorted(sample.labels))]): sample.value
        for family in registry.collect()
        for sample in family.samples
    }


def count_nothing() -> list[str]:
    """Modules of prometheus_client that a server without metrics has imported."""
    count(False, 0)
    return [name for name in sys.modules if name.startswith("prometheus_client")]


def registered() -> dict[str, list[str]]:
    """Every sample that the package exports, with its labels."""
    metrics = [*vars(serving_metrics._metrics()).values(), *vars(experiment_metrics._metrics()).values()]
    found: dict[str, list[str]] = {}
    for metric in metrics:
        (family,) = metric.describe()
        for suffix in SAMPLES[family.type]:
            labels = ["le"] * (suffix == "_bucket")
            found[family.name + suffix] = [*metric._labelnames, *labels]
    return found


if __name__ == "__main__":
    assert ("PROMETHEUS_MULTIPROC_DIR" in os.environ) == (sys.argv[1] == "count_in_two_workers")
    print(json.dumps(globals()[sys.argv[1]]()))
