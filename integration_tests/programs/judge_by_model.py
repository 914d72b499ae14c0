"""Two styles of answer, and the served model says which one is right (arXiv 2207.05221).

A chat model is needed: the judge's question is asked through its chat template.
"""

from __future__ import annotations

from typing import Any

import sglang as sgl
import sglang_power.frontend as sp

from integration_tests.programs.running import main

__all__ = ["judge_by_model"]


@sgl.function
def judge_by_model(s: Any, question: str) -> None:
    """A likely answer against an ordinary one."""
    s += sgl.user(question)
    s += sgl.assistant_begin()
    styles = sp.branch(s, names=["likely", "ordinary"])
    styles["likely"] += sp.gen("answer", alpha=4.0, block_size=16, steps=4, max_tokens=32)
    styles["ordinary"] += sgl.gen("answer", max_tokens=32)
    s["verdict"] = sp.select(styles, by="self_evaluation", of="answer", question=question)
    s += sgl.assistant_end()


if __name__ == "__main__":
    main(judge_by_model, "What colour is the sky?", "answer")
