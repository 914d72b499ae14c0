"""What a search says of its triggers and caps, against the table of an exact model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from branch_cases import chosen, ids
from exact_tools import SAMPLING, selection_report
from naive_tree import SEEDS, config, fires, model
from sglang_power.algorithms.triggers import Trigger
from sglang_power.engines.tabular import Prefix
from sglang_power.request import BranchRequest
from sglang_power.samplers.budgets import Budget
from sglang_power.samplers.candidates import Selection
from sglang_power.samplers.firings import Firings, Refusals
from sglang_power.types import ROW_FIELDS

LOOSE = {"thresholds": (0.2,)}


def report(selection: Selection, **asked: Any) -> dict[str, Any]:
    return selection_report(BranchRequest(**asked), selection, 9, SAMPLING)


def rows_of(paths: Iterable[Prefix]) -> set[Prefix]:
    """The rows that paths were drawn from, by what stands before them."""
    return {path[:t] for path in paths for t in range(len(path))}


@pytest.mark.parametrize("trigger", [("entropy", 0.9), ("entropy", 0.2), ("jump", 0.4), ("quantile", 0.7)])
@pytest.mark.parametrize("policy", ["tree", "lookahead", "beam"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_rows_and_firings_are_those_of_the_kept_paths(
    seed: int, policy: str, trigger: tuple[str, float]
) -> None:
    name, threshold = trigger
    fields: dict[str, Any] = {
        "policy": policy,
        "max_branches": 6,
        "trigger": name,
        "thresholds": (threshold,),
    }
    table, conf = model(seed), config(**fields)
    selection = await chosen(table, seed, search=fields)
    expected = rows_of(ids(selection))
    fired = [row for row in expected if fires(conf, table, row)]
    told = report(selection)["firings"]
    assert told == {"rows": len(expected), "fired": len(fired)}


@pytest.mark.parametrize("policy", ["tree", "lookahead"])
@pytest.mark.parametrize("cap", ["max_branches", "max_depth"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_a_cap_tells_what_it_refused_and_ends_the_search(seed: int, cap: str, policy: str) -> None:
    """With a gap of 1 every firing forks or is refused: the naive count is the difference."""
    fields: dict[str, Any] = {"policy": policy, cap: 2, **LOOSE}
    table, conf = model(seed), config(**fields)
    selection = await chosen(table, seed, search=fields, return_tree=True)
    told = report(selection, return_tree=True)
    nodes = told["tree"]["nodes"]
    forked = {tuple(spelled_before(nodes, node)) for node in nodes if node["fate"] == "forked"}
    refused = {row for row in rows_of(ids(selection)) if fires(conf, table, row)} - forked
    if not refused:
        assert told["capped_by"] == {}
        assert told["stopped_by"] == "completed"
        return
    first = min(len(row) for row in refused)
    assert told["capped_by"] == {cap: {"position": first, "refused": len(refused)}}
    assert told["stopped_by"] == cap
    assert {node["cap"] for node in nodes} == {None, cap}


def spelled_before(nodes: list[dict[str, Any]], node: dict[str, Any]) -> list[int]:
    """The tokens in front of a node's fork: its ancestors' and its own."""
    above = [] if node["parent"] is None else spelled_before(nodes, nodes[node["parent"]])
    tokens: list[int] = above + node["ids"]
    return tokens


async def test_some_seeds_are_capped_and_some_are_not() -> None:
    """So that the test above can fail both ways."""
    for cap in ("max_branches", "max_depth"):
        ends = {(await chosen(model(s), s, search={cap: 2, **LOOSE})).stopped_by for s in SEEDS}
        assert ends == {"completed", cap}


async def test_a_budget_that_leaves_no_room_for_forks_is_a_cap() -> None:
    selection = await chosen(model(1), budget=Budget(10), search={"policy": "tree", **LOOSE})
    assert selection.stopped_by == "max_total_tokens"
    (cap,) = report(selection)["capped_by"].items()
    assert cap[0] == "max_total_tokens"
    assert cap[1]["refused"] > 0


async def test_what_capped_a_search_stands_at_the_top_of_the_report() -> None:
    told = report(await chosen(model(1), search={"max_branches": 2, **LOOSE}))
    assert list(told)[:4] == ["sampler", "capped_by", "hint", "firings"]


@pytest.mark.parametrize(("fired", "hints"), [(0, False), (33, False), (34, True), (100, True)])
def test_a_hint_comes_above_a_third_of_the_rows(fired: int, hints: bool) -> None:
    found = Firings(("entropy", "ratio"), 100, fired, {"max_branches": Refusals(5, 9)})
    told = found.reported()
    assert ("hint" in told) == hints
    if hints:
        assert told["hint"].startswith(f"entropy or ratio fired at {fired} of 100 rows ({fired}%)")
        assert "sglang-power tune thresholds" in told["hint"]


def test_no_rows_give_no_hint() -> None:
    assert Firings((Trigger("entropy", (0.6,)).name,), 0, 0).hint is None


async def test_rows_come_with_the_paths_where_they_are_asked_for() -> None:
    selection = await chosen(model(3))
    told = report(selection, return_rows=True)["paths"]
    for path, one in zip(told, selection.candidates, strict=True):
        assert list(path["rows"]) == list(ROW_FIELDS)
        assert path["rows"]["entropy"] == one.tokens.entropy.tolist()
        assert path["rows"]["log_p"] == one.tokens.log_p.tolist()
    assert all("rows" not in path for path in report(selection)["paths"])
