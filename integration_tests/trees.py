"""Prints the tree of a `branch` answer (`meta_info.power.tree`) as text."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

Node = dict[str, Any]


def tree_text(tree: dict[str, Any]) -> str:
    """One line per branch: its text, the probability of its first token, what fired, its score, its fate."""
    children: dict[int | None, list[Node]] = defaultdict(list)
    for node in tree["nodes"]:
        children[node["parent"]].append(node)
    return "\n".join(line for root in children[None] for line in _lines(root, children, "", ""))


def _lines(node: Node, children: dict[int | None, list[Node]], head: str, indent: str) -> Iterator[str]:
    yield head + _described(node)
    below = children[node["node"]]
    for number, child in enumerate(below):
        last = number == len(below) - 1
        yield from _lines(
            child, children, indent + ("└─ " if last else "├─ "), indent + ("   " if last else "│  ")
        )


def _described(node: Node) -> str:
    text = repr(node["text"]) if node["text"] else "(nothing)"
    if node["parent"] is None:
        return f"{text}  {node['fate']}"
    first = f"p {math.exp(node['first_log_p']):.2f}"
    score = "" if node["score"] is None else f", score {node['score']:.2f}"
    fired = f"{node['trigger']} (H {node['entropy']:.2f})"
    mark = {"chosen": "  <== chosen", "pruned": "  pruned"}.get(node["fate"], "")
    return f"{text}  {first}, {fired}{score}{mark}"
