"""Dashboard and alerts name what the code exports, and nothing else; promtool loads them where it is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import ab_metrics_child
import pytest
import yaml
from promql import labels_of, matchers_of
from sglang_power.experiments import counters
from sglang_power.experiments.log import Trouble
from sglang_power.experiments.records import RequestOutcome
from sglang_power.samplers.fallback import FallbackReason

FOLDER = Path(__file__).parents[3] / "configs" / "monitoring"
ALERTS, DASHBOARD, SCRAPE = (
    FOLDER / name for name in ("alerts.yaml", "grafana-dashboard.json", "prometheus.yaml")
)
SCENARIOS = Path(__file__).parents[1] / "data" / "alert_scenarios.yaml"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not on PATH")

VALUES = {
    "outcome": get_args(RequestOutcome),
    "trouble": get_args(Trouble),
    "reason": (*get_args(counters.NotEnrolledReason), *get_args(FallbackReason)),
    "result": get_args(counters.FeedbackResult),
    "kind": ("decoded", "prefilled", "wasted"),
    "decision": ("accepted", "rejected"),
}


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    loaded: list[dict[str, Any]] = group["rules"]
    return loaded


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def targets() -> Iterator[tuple[str, str]]:
    """Expression and legend of everything that is drawn, as Grafana sends it."""
    for panel in panels():
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "1m"), target["legendFormat"]


def expressions() -> list[str]:
    return [rule["expr"] for rule in rules()] + [expression for expression, _ in targets()]


@pytest.fixture(scope="module")
def metrics() -> dict[str, frozenset[str]]:
    command = [sys.executable, ab_metrics_child.__file__, "registered"]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name: frozenset(labels) for name, labels in json.loads(told.stdout).items()}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_alerts_use_what_is_exported(rule: dict[str, Any], metrics: dict[str, frozenset[str]]) -> None:
    labels = labels_of(rule["expr"], metrics)
    shown = re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values()))
    assert set(shown) <= labels
    assert labels <= set(shown), "an alert says all that it knows"


@pytest.mark.parametrize(("expression", "legend"), targets())
def test_panels_use_what_is_exported(
    expression: str, legend: str, metrics: dict[str, frozenset[str]]
) -> None:
    labels = labels_of(expression, metrics)
    assert set(re.findall(r"{{(\w+)}}", legend)) == labels, "series of one name cannot be told apart"


def test_every_metric_of_the_package_is_on_the_dashboard(metrics: dict[str, frozenset[str]]) -> None:
    drawn = " ".join(expression for expression, _ in targets())
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in metrics}
    assert [name for name in sorted(families) if name not in drawn] == []


def test_matchers_ask_for_values_that_exist() -> None:
    asked = [(label, value) for text in expressions() for _, label, value in matchers_of(text)]
    assert len(asked) > 10
    for label, value in asked:
        if value != "$experiment":
            assert set(value.split("|")) <= set(VALUES[label]), (label, value)


def test_the_prefix_of_the_variable_is_exported(metrics: dict[str, frozenset[str]]) -> None:
    (_, variable) = dashboard()["templating"]["list"]
    name, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
    assert label in metrics[name]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_alerts_are_complete(rule: dict[str, Any]) -> None:
    assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"SglangPower[A-Za-z]+", rule["alert"])
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"].keys() == {"summary", "description"}


def test_alerts_have_names_of_their_own() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)


def test_panels_can_be_told_apart_and_do_not_overlap() -> None:
    every = dashboard()["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    assert len({panel["title"] for panel in every}) == len(every)
    for panel in every:
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
    for one, other in combinations([panel["gridPos"] for panel in every], 2):
        apart = (one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]) or (
            one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)


def test_the_dashboard_imports_anywhere() -> None:
    loaded = dashboard()
    assert loaded["id"] is None
    assert "uid" not in loaded, "it would replace another dashboard"
    source, experiment = loaded["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    assert experiment["datasource"] == chosen
    for panel in panels():
        assert panel["datasource"] == chosen
        assert panel["description"]
        assert [target["refId"] for target in panel["targets"]] == list("ABC"[: len(panel["targets"])])
        assert all(target["datasource"] == chosen for target in panel["targets"])


def test_prometheus_reads_the_alerts() -> None:
    loaded = yaml.safe_load(SCRAPE.read_text())
    assert loaded["rule_files"] == [ALERTS.name]
    (job,) = loaded["scrape_configs"]
    assert job["metrics_path"] == "/metrics"


@needs_promtool
@pytest.mark.parametrize(
    "arguments",
    [("check", "config", SCRAPE), ("check", "rules", ALERTS), ("test", "rules", SCENARIOS)],
    ids=lambda arguments: " ".join(map(str, arguments[:2])),
)
def test_promtool_agrees(arguments: tuple[str, ...]) -> None:
    told = subprocess.run([str(PROMTOOL), *map(str, arguments)], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr


@needs_promtool
def test_requests_that_end_an_hour_after_they_began_make_no_negative_number_of_unfinished_ones(
    tmp_path: Path,
) -> None:
    """20 requests are enrolled within a minute, 18 of them end after an hour and a half."""
    (panel,) = [panel for panel in panels() if panel["title"] == "Unfinished"]
    (target,) = panel["targets"]
    labels = 'experiment="e", arm="power"'
    scenario = {
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": f"sglang_power_experiment_enrolments_total{{{labels}}}", "values": "0 20x180"},
                    {
                        "series": f'sglang_power_experiment_completions_total{{{labels}, outcome="ok"}}',
                        "values": "0x90 18x90",
                    },
                ],
                "promql_expr_test": [
                    {
                        "expr": target["expr"].replace("$experiment", ".*"),
                        "eval_time": f"{minutes}m",
                        "exp_samples": [{"labels": f"{{{labels}}}", "value": unfinished}],
                    }
                    for minutes, unfinished in [(0, 0), (5, 20), (85, 20), (120, 2), (170, 2)]
                ],
            }
        ],
    }
    file = tmp_path / "unfinished.yaml"
    file.write_text(yaml.safe_dump(scenario))
    told = subprocess.run(
        [str(PROMTOOL), "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stdout + told.stderr


METRICS = {"a_total": frozenset({"x", "y"}), "b_bucket": frozenset({"x", "le"})}


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("sum by (x) (rate(c_total[5m]))", "nobody exports c_total"),
        ("sum by (z) (rate(a_total[5m]))", "no label 'z'"),
        ('sum by (x) (rate(a_total{z="1"}[5m]))', "no label 'z'"),
        ("sum(rate(a_total[5m]))", "say which labels stay"),
        ("sum by (x) (a_total) / sum by (y) (a_total)", "never matches"),
        ("sum by (x, y) (a_total) / sum by (x) (a_total)", "never matches"),
        ("histogram_quantile(0.5, sum by (x) (rate(b_bucket[5m])))", "no label 'le'"),
        ("sum by (x (a_total)", "unclosed"),
        ("3", "a number"),
    ],
)
def test_control_the_checker_refuses(wrong: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        labels_of(wrong, METRICS)


@pytest.mark.parametrize(
    ("right", "labels"),
    [
        ("a_total", {"x", "y", "instance", "job"}),
        ("histogram_quantile(0.5, sum by (x, le) (rate(b_bucket[5m])))", {"x"}),
        ("sum by (x, y) (a_total) / ignoring (y) group_left () sum by (x) (a_total)", {"x", "y"}),
        ("(sum by (x) (a_total) > 0) unless sum by (x) (b_bucket) > 1", {"x"}),
    ],
)
def test_the_checker_knows_the_labels_of_results(right: str, labels: set[str]) -> None:
    assert labels_of(right, METRICS) == labels


def test_the_documents_name_every_reason() -> None:
    """Whoever reads a label looks it up there."""
    plugin = FOLDER.parents[1] / "plugin"
    for path, reasons in (
        (plugin / "docs" / "experiments.md", get_args(counters.NotEnrolledReason)),
        (plugin / "docs" / "requests.md", get_args(FallbackReason)),
    ):
        text = path.read_text()
        assert [reason for reason in reasons if f"`{reason}`" not in text] == []
