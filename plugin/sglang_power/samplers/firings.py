"""How often triggers fired in a search, and which forks its caps refused.

A search stops to look once a path may not fork again, so this judges the whole tree behind it: every row of
the kept paths once, and what would have forked behind a cap. Pure; knows neither text nor server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sglang_power.algorithms.branching import BranchConfig
from sglang_power.algorithms.triggers import TriggerMonitor, TriggerState, Watch
from sglang_power.samplers.budgets import StoppedBy
from sglang_power.samplers.tree import Node, Tree

MANY: Final = 1 / 3
"""Share of the rows above which a trigger says little about where a text is uncertain."""

DEPTH_CAP: Final[StoppedBy] = "max_depth"


@dataclass(frozen=True, slots=True)
class Refusals:
    """Forks that one cap refused.

    Args:
        position: in the answer, of the first one.
        refused: rows of paths that the cap had closed at which a trigger fired, the first one included.
    """

    position: int
    refused: int


@dataclass(frozen=True, slots=True)
class Firings:
    """What triggers did on the rows of a search.

    Args:
        names: of the triggers.
        rows: of paths that were kept, each once.
        fired: rows of them at which a trigger fired, whatever the caps and `min_gap` made of it.
        capped_by: what each cap refused, in the order of their first refusals.
    """

    names: tuple[str, ...]
    rows: int
    fired: int
    capped_by: dict[StoppedBy, Refusals] = field(default_factory=dict)

    @property
    def hint(self) -> str | None:
        """What to do about a trigger that fires nearly everywhere."""
        if self.fired <= MANY * self.rows:
            return None
        share = f"{self.fired} of {self.rows} rows ({self.fired / self.rows:.0%})"
        return (
            f"{' or '.join(self.names)} fired at {share}, so the caps and not the model's uncertainty decide "
            "where answers fork. Thresholds depend on the model: `sglang-power tune thresholds` measures them"
        )

    def reported(self) -> dict[str, Any]:
        """Return the first entries of the report, behind the sampler's name."""
        capped = {
            cap: {"position": found.position, "refused": found.refused}
            for cap, found in self.capped_by.items()
        }
        hint = self.hint
        return {
            "capped_by": capped,
            **({} if hint is None else {"hint": hint}),
            "firings": {"rows": self.rows, "fired": self.fired},
        }


def firings(config: BranchConfig, tree: Tree) -> Firings:
    """Return what the triggers did on a tree whose search has ended.

    A node that `max_depth` kept from forking again is marked with that cap.
    """
    states: list[TriggerState] = []
    depths: list[int] = []
    judged_forks: set[int | None] = set()
    rows = fired = 0
    refused: dict[StoppedBy, list[int]] = {}
    for node in tree.nodes:
        parent = node.parent
        before = TriggerState() if parent is None else states[parent]
        depths.append(0 if parent is None else depths[parent] + 1)
        state, firing = _judged(config, node, before)
        states.append(state)
        if node.fate != "pruned" and len(node.tokens) > 0:
            first = 1 if parent in judged_forks else 0  # branches of a fork share the row at which it forked
            rows += len(node.tokens) - first
            fired += sum(place >= node.start + first for place in firing)
            if parent is not None:
                judged_forks.add(parent)
        closed_at = _closed_at(config, node, depths[-1])
        late = [] if closed_at is None else [place for place in firing if place >= closed_at]
        if late:
            node.cap = node.cap or DEPTH_CAP
            refused.setdefault(node.cap, []).extend(late)
    capped = {cap: Refusals(min(places), len(places)) for cap, places in refused.items()}
    ordered = dict(sorted(capped.items(), key=lambda item: item[1].position))
    return Firings(tuple(trigger.name for trigger in config.triggers), rows, fired, ordered)


def _judged(config: BranchConfig, node: Node, before: TriggerState) -> tuple[TriggerState, Sequence[int]]:
    """The triggers' state behind a node's rows, and the positions at which they fire."""
    monitor = TriggerMonitor(Watch(config.triggers, before))
    records = enumerate(node.tokens.rows.tolist(), start=node.start)
    firing = [place for place, record in records if monitor.observe(place, record) is not None]
    return monitor.state, firing


def _closed_at(config: BranchConfig, node: Node, depth: int) -> int | None:
    """The first position at which a cap forbade a node's path to fork, if one did.

    The end of a rollout that was pruned was shown to no trigger, so no cap refused anything there.
    """
    if node.cap is not None:
        return node.cap_from
    if depth < config.max_depth or node.fate == "pruned":
        return None
    return node.start + config.min_gap
