"""Tree of thought (Yao et al., arXiv 2305.10601): several next steps, the most likely one is kept, and so on.

Steps of the pivot model end with a semicolon, its answers with a full stop.
"""

from __future__ import annotations

from typing import Any

import sglang as sgl
import sglang_power.frontend as sp

from integration_tests.programs.running import main

__all__ = ["tree_of_thought"]

DEPTH = 6
BRANCHES = 4


@sgl.function
def tree_of_thought(s: Any, question: str) -> None:
    """Greedy search over steps, each looked at with one step of what follows it."""
    s += question
    steps = ""
    for depth in range(DEPTH):
        thoughts = sp.branch(s, first_tokens=BRANCHES)
        thoughts += sgl.gen(f"step{depth}", max_tokens=16, stop=";", temperature=0.0)
        sp.select(thoughts, by="mean_log_p")
        steps += s[f"step{depth}"]
        if s.get_meta_info(f"step{depth}")["finish_reason"].get("matched") != ";":
            break
        s += ";"
        steps += ";"
    s["steps"] = steps


if __name__ == "__main__":
    main(tree_of_thought, "R7+3*2-8+5*6:", "steps")
