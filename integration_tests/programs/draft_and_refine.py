"""A cheap draft, then power sampling that starts from it: the draft's tokens are the chain's first state."""

from __future__ import annotations

from typing import Any

import sglang as sgl
import sglang_power.frontend as sp

from integration_tests.programs.running import main

__all__ = ["draft_and_refine"]


@sgl.function
def draft_and_refine(s: Any, question: str) -> None:
    """Plain sampling at temperature 1, and twenty steps towards p^4."""
    s += question
    s += sp.gen("answer", "none", max_tokens=64)
    s["draft"] = s["answer"]
    s += sp.refine("answer", steps=20, alpha=4.0, proposal_temperature=1.0, cut="entropy")


if __name__ == "__main__":
    main(draft_and_refine, "R7+3*2-8+5*6:", "answer")
