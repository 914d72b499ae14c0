"""Where the paths of CoT-decoding part: late, at the first token after all, or nowhere at all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from letters import Letters
from selection_cases import cot
from sglang_power.engines.tabular import TabularModel
from sglang_power.errors import RequestError
from sglang_power.request import CotRequest
from sglang_power.sglang_host.tokenizer.answer_plan import _forced

K, L = 3, 6
ENDLESS = TabularModel(lambda _: np.array([1e-9, 0.5, 0.3, 0.2 - 1e-9]), horizon=L)
"""Never stops."""


async def test_paths_part_at_the_first_token_where_the_reasoning_never_ends() -> None:
    """The report says so, and the answer that was searched for its end is one of the paths."""
    first = await cot(model=ENDLESS, k=K).run()
    late = await cot(model=ENDLESS, k=K, after=lambda _: None).run()
    assert [one.tokens.ids for one in late.candidates] == [one.tokens.ids for one in first.candidates]
    reading, ranking = len(late.candidates), 1
    assert late.usage.decoded == first.usage.decoded == K * L + reading + ranking
    assert late.notes["fork"] == {"at": "first", "reason": "no token follows the end of the reasoning"}
    assert "fork" not in first.notes


async def test_a_reasoning_that_ends_with_the_answer_leaves_no_place_either() -> None:
    selection = await cot(model=ENDLESS, k=K, after=len).run()
    assert len({one.tokens.ids[0] for one in selection.candidates}) == K
    assert selection.usage.decoded == K * L + len(selection.candidates) + 1
    assert selection.notes["fork"]["at"] == "first"


async def test_paths_that_part_where_they_should_need_no_note() -> None:
    selection = await cot(model=ENDLESS, k=K, after=lambda _: 2).run()
    assert {one.tokens.ids[:2] for one in selection.candidates} == {(1, 1)}
    assert "fork" not in selection.notes


MANAGER = SimpleNamespace(tokenizer=Letters(), model_config=SimpleNamespace(hf_eos_token_id=[0]))


@pytest.mark.parametrize(
    ("params", "at"), [({"stop_token_ids": [3]}, 3), ({"stop": ["bc"]}, 3), ({"stop": ["d"]}, 4)], ids=str
)
def test_a_prefix_with_a_stop_inside_is_refused(params: dict[str, Any], at: int) -> None:
    request = CotRequest(fork_at="after_prefix", fork_prefix="abcd")
    forced = request.needs.forced
    assert forced is not None
    assert _forced(MANAGER, forced, {}, L) == (1, 2, 3, 4)
    with pytest.raises(RequestError, match=f"a stop at token {at} of 4") as caught:
        _forced(MANAGER, forced, params, L)
    assert (caught.value.field, caught.value.value) == ("fork_prefix", "abcd")
