"""The tree of answers that part at one place: it spells every answer, and tells what was chosen."""

from __future__ import annotations

import json

import pytest
from selection_cases import LastDigit
from sglang_power.engines.tabular import TabularModel
from sglang_power.samplers.tree import common_length, reported_tree, star
from sglang_power.types import ProposalLaw

MODEL = TabularModel.random(4, vocab=4, horizon=5)


@pytest.mark.parametrize(
    ("ids", "shared"),
    [
        ([(1, 2, 3), (1, 2, 0), (1, 2, 2, 0)], 2),
        ([(1,), (2,)], 0),
        ([(1, 2), (1, 2)], 2),
        ([(1, 2, 3)], 3),
        ([(1,), (1, 0)], 1),
    ],
)
def test_a_star_spells_every_answer(ids: list[tuple[int, ...]], shared: int) -> None:
    assert common_length(ids) == shared
    paths = [MODEL.score(one, ProposalLaw(1.0)) for one in ids]
    tree, leaves = star(paths, [0.5] * len(paths), len(paths) - 1)
    report = json.loads(json.dumps(reported_tree(tree, leaves, LastDigit())))
    nodes = report["nodes"]
    assert [tuple(nodes[0]["ids"] + nodes[leaf]["ids"]) for leaf in report["leaves"]] == ids
    assert sum(node["log_p"] for node in (nodes[0], nodes[1])) == pytest.approx(paths[0].log_p.sum())
    assert [nodes[leaf]["fate"] for leaf in leaves] == ["leaf"] * (len(ids) - 1) + ["chosen"]
    for path, leaf in zip(paths, leaves, strict=True):
        entropy = path.entropy[shared] if len(path) > shared else None
        assert nodes[leaf]["entropy"] == pytest.approx(entropy)
        assert nodes[leaf]["span"] == [shared, len(path)]
