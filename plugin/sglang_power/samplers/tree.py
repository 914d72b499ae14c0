"""The record of a tree of paths: what forked where and why, and what became of every branch.

Written while a run goes on, reported as `meta_info.power.tree` where the request asks for it. Nodes hold the
tokens that are theirs alone; those of their ancestors stand before them. Knows no server.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from sglang_power.samplers.budgets import StoppedBy
from sglang_power.types import Tokens

MAX_NODES = 2000
"""Of a reported tree; further ones are counted in `omitted`."""

MAX_NODE_TOKENS = 512
"""Of the ids of one reported node; its span tells its whole length."""

Fate = Literal["open", "forked", "pruned", "leaf", "chosen"]


class Decoder(Protocol):
    """What a tree needs of a Reader."""

    def text(self, ids: tuple[int, ...], finished: bool) -> str:
        """Of token ids."""
        ...


@dataclass(slots=True)
class Node:
    """One branch, from its fork to the next one or to its end.

    Args:
        parent: its parent's number; None for the root.
        start: position in the answer of its first token.
        trigger, entropy: what fired there, and H of that row; None for the root.
        first_log_p: of its first token, nats.
        tokens: its own.
        score: what it was compared by, where it was.
        fate: what became of it.
        cap: the limit that kept it from forking again, if one did; cap_from: from which position on.
    """

    parent: int | None
    start: int = 0
    trigger: str | None = None
    entropy: float | None = None
    first_log_p: float | None = None
    tokens: Tokens = Tokens.EMPTY
    score: float | None = None
    fate: Fate = "open"
    cap: StoppedBy | None = None
    cap_from: int = 0


class Tree:
    """The nodes of one run, numbered in the order in which they were opened."""

    def __init__(self) -> None:
        self.nodes = [Node(None)]

    def open(self, parent: int, start: int, trigger: str | None, entropy: float | None, log_p: float) -> int:
        """Add a branch of `parent`; its number."""
        self.nodes.append(Node(parent, start, trigger, entropy, log_p))
        return len(self.nodes) - 1

    def __getitem__(self, number: int) -> Node:
        return self.nodes[number]

    def grown(self, number: int, path: Tokens) -> None:
        """Take a node's own tokens from its whole path."""
        node = self.nodes[number]
        node.tokens = path.after(node.start)


def star(paths: Sequence[Tokens], scores: Sequence[float | None], chosen: int) -> tuple[Tree, list[int]]:
    """The tree of answers that part where their common prefix ends, and the nodes of its leaves.

    Args:
        paths: whole answers, at least one.
        scores: of each.
        chosen: index of the one that is returned.
    """
    at = common_length(path.ids for path in paths)
    tree = Tree()
    tree[0].tokens, tree[0].fate = paths[0].first(at), "forked"
    for index, (path, score) in enumerate(zip(paths, scores, strict=True)):
        parts = len(path) > at
        entropy = float(path.entropy[at]) if parts else None
        number = tree.open(0, at, None, entropy, float(path.log_p[at]) if parts else 0.0)
        tree.grown(number, path)
        tree[number].score, tree[number].fate = score, "chosen" if index == chosen else "leaf"
    return tree, list(range(1, len(paths) + 1))


def common_length(sequences: Iterable[Sequence[Hashable]]) -> int:
    """How many elements (tokens, characters) all of them begin with."""
    columns = zip(*sequences, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


def reported_tree(tree: Tree, leaves: Sequence[int], decoder: Decoder) -> dict[str, Any]:
    """The tree as JSON; size-capped.

    Args:
        tree: of a run that has ended.
        leaves: the nodes at which its answers end, in the order of `paths`.
        decoder: of the nodes' ids; pieces of a character show as U+FFFD.
    """
    shown = tree.nodes[:MAX_NODES]
    return {
        "nodes": [_reported(number, node, decoder) for number, node in enumerate(shown)],
        "leaves": list(leaves),
        "omitted": len(tree.nodes) - len(shown),
    }


def _reported(number: int, node: Node, decoder: Decoder) -> dict[str, Any]:
    ids = node.tokens.ids[:MAX_NODE_TOKENS]
    log_p = float(node.tokens.log_p.sum())
    return {
        "node": number,
        "parent": node.parent,
        "span": [node.start, node.start + len(node.tokens)],
        "ids": list(ids),
        "text": decoder.text(ids, finished=False),
        "log_p": log_p if math.isfinite(log_p) else None,
        "first_log_p": node.first_log_p,
        "trigger": node.trigger,
        "entropy": node.entropy,
        "score": node.score,
        "fate": node.fate,
        "cap": node.cap,
    }
