"""Reports of real runs on the exact model become records that tell what ran. Error rate 0."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from branch_cases import EXACT, chosen
from exact_tools import power_report, selection_report
from naive_tree import model
from selection_cases import cot
from sglang_power.engines.tabular import TabularEngine, TabularModel
from sglang_power.request import BranchRequest, CotRequest, PowerRequest, SelectionRequest
from sglang_power.rng import Key
from sglang_power.samplers.budgets import Budget
from sglang_power.samplers.candidates import Candidate, Selection
from sglang_power.samplers.chain import Chain as ChainDriver
from sglang_power.viewer import record_of
from sglang_power.viewer.record import TraceChain, TraceNode, TraceTree
from sglang_power.viewer.story import _caps


def bytes_as_text(ids: Sequence[int]) -> str:
    """Tokens 1 and 2 are the two bytes of one character, which pieces tear apart."""
    return bytes({0: 33, 1: 0xC3, 2: 0xA9, 3: 97}[i] for i in ids).decode(errors="replace")


async def test_a_reported_chain_tells_both_endings_of_every_step() -> None:
    request = PowerRequest(alpha=2.0, proposal_temperature=1.0, block_size=4, steps=8, return_trace=True)
    model = TabularModel.random(3, vocab=4, horizon=12, concentration=5.0)
    config = request.mh_config(12)
    driver = ChainDriver(TabularEngine(model), config, Key(5), Budget(100_000))
    result = await driver.run()
    report = power_report(request, config, result, bytes_as_text)
    text = bytes_as_text(result.state.tokens.ids)
    chain = record_of({"text": text, "meta_info": {"power": report}}).run
    assert isinstance(chain, TraceChain)
    assert any(step.early_rejected for step in chain.steps)
    torn = 0
    for info, step in zip(result.infos, chain.steps, strict=True):
        torn += bytes_as_text(info.current_ids[: info.cut]).endswith("\N{REPLACEMENT CHARACTER}")
        proposed = (*info.current_ids[: info.cut], *info.proposal.ids)
        assert f"{step.kept_text}{step.current_text}" == bytes_as_text(info.current_ids)
        assert f"{step.kept_text}{step.proposal_text}" == bytes_as_text(proposed)
    assert torn > 0
    assert sum(step.saved_tokens_max or 0 for step in chain.steps) == report["saved_tokens_max"]


def tree_of(request: SelectionRequest, selection: Selection) -> TraceTree:
    report = selection_report(request, selection, 9)
    tree = record_of({"text": selection.best.text, "meta_info": {"power": report}}).run
    assert isinstance(tree, TraceTree)
    return tree


def ends(tree: TraceTree) -> list[int]:
    """Nodes that end with whole answers."""
    return [number for number, node in enumerate(tree.nodes) if node.fate in ("leaf", "chosen")]


def spelled(tree: TraceTree, number: int) -> str:
    """The text that ends in a node."""
    text, at = "", number
    while (parent := tree.nodes[at].parent) is not None:
        text, at = tree.nodes[at].text + text, parent
    return tree.nodes[at].text + text


def told(node: TraceNode) -> tuple[str | None, float | None, int]:
    return node.answer, node.confidence, node.end


def wanted(one: Candidate) -> tuple[str | None, float | None, int]:
    return one.value, one.delta, len(one.tokens)


@pytest.mark.parametrize("policy", ["tree", "lookahead", "beam"])
async def test_every_leaf_of_a_tree_has_the_answer_that_its_path_spells(policy: str) -> None:
    search = {"policy": policy, "max_depth": 4, **({"beam": 2} if policy == "beam" else {})}
    selection = await chosen(model(1), search=search, return_tree=True, vote=EXACT)
    tree = tree_of(BranchRequest(return_tree=True), selection)
    by_text = {spelled(tree, number): number for number in ends(tree)}
    assert len(by_text) == len(selection.candidates) > (policy != "lookahead")
    for one in selection.candidates:
        number = by_text["".join(map(str, one.tokens.ids))]
        assert told(tree.nodes[number]) == wanted(one)
        assert (number == tree.chosen) == (one is selection.best)
        (group,) = (group for group in tree.classes if number in group.members)
        assert group.representative == one.value


async def test_paths_of_cot_show_their_entropy() -> None:
    selection = await cot().run()
    tree = tree_of(CotRequest(k=3), selection)
    for node, one in zip(tree.nodes[1:], selection.candidates, strict=True):
        assert told(node) == wanted(one)
        assert node.entropy == pytest.approx(one.tokens.entropy.mean())
        assert node.first_log_p == one.first_log_p


async def test_a_capped_search_says_which_limit_refused_forks_and_what_helps() -> None:
    selection = await chosen(model(1), search={"max_branches": 2, "thresholds": (0.2,)}, return_tree=True)
    tree = tree_of(BranchRequest(return_tree=True), selection)
    capped = selection.headline["capped_by"]["max_branches"]
    assert [(cap.name, cap.position, cap.refused) for cap in tree.capped] == [
        ("max_branches", capped["position"], capped["refused"])
    ]
    told = _caps(tree)
    assert f"position {capped['position']}" in told[0]
    assert "max_branches" in told[0]
    assert told[1] == f"{selection.headline['hint']}."
    free = tree_of(
        BranchRequest(return_tree=True),
        await chosen(model(1), search={"thresholds": (9.0,)}, return_tree=True),
    )
    assert _caps(free) == []
