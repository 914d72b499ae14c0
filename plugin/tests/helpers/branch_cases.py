"""Branch searches on the tabular model."""

from __future__ import annotations

import dataclasses
from typing import Any

from naive_tree import config
from selection_cases import LastDigit
from sglang_power.answers import equivalence
from sglang_power.engines.tabular import Prefix, TabularEngine, TabularModel
from sglang_power.rng import Key
from sglang_power.samplers.budgets import Budget
from sglang_power.samplers.candidates import Selection
from sglang_power.samplers.leaves import LeafChoice
from sglang_power.samplers.scores import Scores
from sglang_power.samplers.search import BranchSearch

EXACT = equivalence("exact")


TREE = {"policy": "tree", "max_depth": 3}


async def chosen(
    table: TabularModel,
    seed: int = 1,
    *,
    engine: TabularEngine | None = None,
    budget: Budget | None = None,
    scores: Scores | None = None,
    search: dict[str, Any] | None = None,
    **choice: Any,
) -> Selection:
    """One run on a table; `choice` are fields of LeafChoice."""
    engine = TabularEngine(table) if engine is None else engine
    scores = Scores("mean_log_p", LastDigit()) if scores is None else scores
    budget = Budget(100_000) if budget is None else budget
    conf = dataclasses.replace(config(**(TREE if search is None else search)), horizon=table.horizon)
    run = BranchSearch(engine, conf, Key(seed), scores, budget)
    return await LeafChoice(engine, LastDigit(), scores, budget, **choice).run(run, Key(seed))


def ids(selection: Selection) -> list[Prefix]:
    return [one.tokens.ids for one in selection.candidates]
