"""Requests without max_new_tokens, as chat clients send them: a plan that is accepted is served, too."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from letters import Letters
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang_power.errors import UnsupportedError
from sglang_power.server.config import Limits, ServerConfig
from sglang_power.sglang_host.tokenizer.answer_plan import AnswerPlan
from sglang_power.sglang_host.tokenizer.answer_run import AnswerRun
from sglang_power.sglang_host.tokenizer.body import Body
from sglang_power.sglang_host.tokenizer.host import Host
from sglang_power.sglang_host.tokenizer.plan import plan_arm

CONTEXT = 32_768
CHAT = Body.at("/v1/chat/completions", {"messages": [], "model": "m"})
LIMITS = Limits(max_horizon=2_048, max_total_tokens=65_536)
EIGHT = {"sampler": "best_of", "samples": 8, "answer": "text"}
MANAGER = SimpleNamespace(
    tokenizer=Letters(),
    model_config=SimpleNamespace(vocab_size=100, hf_eos_token_id=[0]),
    server_args=SimpleNamespace(),
    served_model_name="m",
    context_len=CONTEXT,
    num_reserved_tokens=0,
    max_req_input_len=CONTEXT - 6,
)


def horizon(prompt: int, sampler: dict[str, Any], limit: int | None = None, n: int = 1) -> int:
    """L of a request, as it is run."""
    config = ServerConfig(limits=LIMITS)
    obj = GenerateReqInput(text="a", sampling_params={"max_new_tokens": limit, "temperature": 1.0, "n": n})
    plan = plan_arm(MANAGER, obj, CHAT, config, sampler)
    assert isinstance(plan, AnswerPlan)
    return AnswerRun(Host(MANAGER, lambda *_: None, obj, None, config), plan)._horizon(prompt)


@pytest.mark.parametrize(
    ("prompt", "n", "sampler", "expected"),
    [
        (20, 1, EIGHT, 65_536 // 8),
        (20, 4, EIGHT, 65_536 // 32),
        (CONTEXT - 50, 1, EIGHT, 48),  # SGLang's own cap
        (20, 1, {**EIGHT, "max_total_tokens": 800}, 100),
        (20, 1, {**EIGHT, "base": {"sampler": "power"}}, 2_048),
        (20, 1, {"sampler": "cot", "k": 4, "answer": "text"}, 65_536 // 4),
        (20, 1, {"sampler": "branch"}, CONTEXT - 22),
    ],
    ids=str,
)
def test_every_answer_has_its_share_of_the_cap(
    prompt: int, n: int, sampler: dict[str, Any], expected: int
) -> None:
    """Also of the samples of all n choices; the context and max_horizon hold beside it."""
    assert horizon(prompt, sampler, n=n) == expected
    cap = sampler.get("max_total_tokens", LIMITS.max_total_tokens)
    assert expected * n * sampler.get("samples", 1) <= cap


@pytest.mark.parametrize(
    ("limit", "n", "sampler", "field"),
    [
        (8_193, 1, EIGHT, "max_new_tokens"),
        (None, 9, EIGHT, "samples"),
        (None, 1, {**EIGHT, "max_total_tokens": 70_000}, "max_total_tokens"),
        (None, 1, {**EIGHT, "max_total_tokens": 7}, "max_total_tokens"),
    ],
    ids=str,
)
def test_what_no_length_makes_fit_is_refused_before_it_runs(
    limit: int | None, n: int, sampler: dict[str, Any], field: str
) -> None:
    with pytest.raises(UnsupportedError) as error:
        horizon(20, sampler, limit, n)
    assert error.value.field == field
