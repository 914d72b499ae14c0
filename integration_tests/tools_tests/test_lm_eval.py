"""The real lm-eval, unmodified and in an environment of its own, by the document's commands as they stand.

A proxy between tool and server keeps every body and answer; the server's counters are read beside it.
Error rate 0.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sglang_power.reports import report_of

from integration_tests.documents import GUIDES, ROOT, SERVED, Block, blocks
from integration_tests.helpers.clients import metric
from integration_tests.pivot.problems import problems
from integration_tests.server import Server
from integration_tests.tools_tests.recording import Exchange, Recorder, recording

pytestmark = pytest.mark.server

CHAT = "/v1/chat/completions"
CONFIGS = ROOT / "configs" / "lm_eval"
ITEMS = [json.loads(line) for line in (CONFIGS / "pivot_r.jsonl").read_text().splitlines()]
RUN_S = 800.0


@pytest.fixture
def recorder(pivot_server: Server) -> Iterator[Recorder]:
    """The proxy in front of the server."""
    with recording(pivot_server) as running:
        yield running


def documented(config: str) -> Block:
    """Return the block of the document that runs a configuration."""
    (found,) = [block for block in blocks(GUIDES / "tools.md") if f"configs/lm_eval/{config}" in block.text]
    return found


def run_block(block: Block, recorder: Recorder, tools: Path, folder: Path) -> dict[str, Any]:
    """Run a block beside the files of a clone, the server's address replaced; returns lm-eval's results."""
    shutil.copytree(ROOT / "configs", folder / "configs")
    for path in (folder / "configs" / "lm_eval").glob("*.yaml"):
        path.write_text(path.read_text().replace(SERVED, recorder.url))
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(tools), os.environ["PATH"]]),
        "PYTHONPATH": "",  # the tool's own packages and no others
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(folder / "cache"),
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    (written,) = (folder / "lm_eval_results").rglob("results_*.json")
    results: dict[str, Any] = json.loads(written.read_text())
    (samples,) = (folder / "lm_eval_results").rglob("samples_*.jsonl")
    assert len(samples.read_text().splitlines()) == len(ITEMS)
    return results


def answered(recorder: Recorder) -> list[Exchange]:
    """Return the exchanges of a run, one per item, each answered."""
    found = recorder.exchanges
    assert {exchange.path for exchange in found} == {CHAT}
    assert {exchange.status for exchange in found} == {200}
    asked = sorted(exchange.body["messages"][-1]["content"] for exchange in found)
    assert asked == sorted(item["prompt"] for item in ITEMS)
    return found


def right(found: list[Exchange]) -> int:
    """Return how many answers state what is right: the digit behind the first A."""
    wanted = {item["prompt"]: item["answer"] for item in ITEMS}
    texts = [
        (exchange.body["messages"][-1]["content"], exchange.answer["choices"][0]["message"]["content"])
        for exchange in found
    ]
    return sum(text.partition("A")[2][:1] == wanted[prompt] for prompt, text in texts)


def test_power_answers_every_item(
    pivot_server: Server, recorder: Recorder, tools: Path, tmp_path: Path
) -> None:
    def ended(**labels: str) -> float:
        return metric(pivot_server, "sglang_power_requests_total", **labels)

    before, by_power = ended(), ended(sampler="power", stopped_by="completed")
    results = run_block(documented("power.yaml"), recorder, tools, tmp_path)
    found = answered(recorder)
    assert ended() - before == ended(sampler="power", stopped_by="completed") - by_power == len(ITEMS)
    wanted = yaml.safe_load((CONFIGS / "power.yaml").read_text())["gen_kwargs"]["custom_params"]
    seeds = set()
    for exchange in found:
        assert exchange.body["custom_params"] == wanted
        assert exchange.body["seed"] is None
        (report,) = exchange.answer["metadata"]["power"]
        assert report_of(report, "power")["law"] == "power"
        assert {name: report["params"][name] for name in ("alpha", "block_size", "steps")} == {
            name: wanted[name] for name in ("alpha", "block_size", "steps")
        }
        seeds.add(report["seed"])
    assert len(seeds) == len(ITEMS), "the same random numbers served several items"
    told = results["results"]["pivot_r"]["exact_match,answer"]
    assert told == pytest.approx(right(found) / len(ITEMS))


def test_the_baseline_is_plain(pivot_server: Server, recorder: Recorder, tools: Path, tmp_path: Path) -> None:
    before = metric(pivot_server, "sglang_power_requests_total")
    results = run_block(documented("plain.yaml"), recorder, tools, tmp_path)
    found = answered(recorder)
    assert metric(pivot_server, "sglang_power_requests_total") == before
    assert {exchange.body["temperature"] for exchange in found} == {1.0}
    assert not any((exchange.answer.get("metadata") or {}).get("power") for exchange in found)
    told = results["results"]["pivot_r"]["exact_match,answer"]
    assert told == pytest.approx(right(found) / len(ITEMS))


def test_the_items_are_held_out_problems() -> None:
    asked = problems("R", len(ITEMS), seed=1)
    assert [{"prompt": problem.text, "answer": str(problem.answer)} for problem in asked] == ITEMS
