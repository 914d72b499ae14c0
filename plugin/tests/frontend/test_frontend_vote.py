"""`sp.select(by="vote")`: the votes of branches. Deterministic; error rate 0."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from sglang_power.frontend import selecting
from sglang_power.frontend.settings import SelectSettings, parsed


@pytest.mark.parametrize(
    ("equivalence", "index", "scores"),
    [("number", 3, [None, None, None, 2.0, 2.0, None]), ("exact", 0, [3.0, 3.0, 3.0, 2.0, 2.0, None])],
)
def test_answers_that_cannot_be_read_get_no_votes(
    monkeypatch: pytest.MonkeyPatch, equivalence: str, index: int, scores: list[float | None]
) -> None:
    texts = dict(zip("abcdef", ["no idea", "no idea", "no idea", "4", "4", " "], strict=True))
    monkeypatch.setattr(
        selecting, "segment_of", lambda _, name, __: (None, SimpleNamespace(text=texts[name]))
    )
    executor = SimpleNamespace(backend=SimpleNamespace(client=None))
    group: Any = SimpleNamespace(origin=SimpleNamespace(stream_executor=executor))
    settings = parsed(SelectSettings, {"by": "vote", "answer": "text", "equivalence": equivalence})
    made = selecting._Chooser(group, list(texts), settings, seed=1).choose()
    assert (made.index, made.scores, made.reason) == (index, scores, "largest")
