"""Self-consistency (Wang et al., arXiv 2203.11171): several samples, the answer that most of them give."""

from __future__ import annotations

from typing import Any

import sglang as sgl
import sglang_power.frontend as sp

from integration_tests.programs.running import main

__all__ = ["self_consistency"]


@sgl.function
def self_consistency(s: Any, question: str) -> None:
    """Eight samples, one vote."""
    s += question
    group = sp.branch(s, 8)
    group += sgl.gen("answer", max_tokens=64, stop="\n")
    sp.select(group, by="vote", answer="number")


if __name__ == "__main__":
    main(self_consistency, "Q7+3*2-8:", "answer")
