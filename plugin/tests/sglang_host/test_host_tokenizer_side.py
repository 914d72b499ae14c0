"""The tokenizer side without a server: intake, refusals, stops, streams, hooks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest
from letters import Letters
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang_power.errors import HostError, LimitError, RequestError, UnsupportedError
from sglang_power.request import Needs, parse_request
from sglang_power.server.config import Limits
from sglang_power.sglang_host.hooks import HOOKS, Hook, _leads_to
from sglang_power.sglang_host.tokenizer import support
from sglang_power.sglang_host.tokenizer.children import _rows
from sglang_power.sglang_host.tokenizer.openai import StreamNotes, _never_torn, _noted, stream
from sglang_power.sglang_host.tokenizer.stopping import StopRule, TextRule


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("speculative_algorithm", "EAGLE"),
        ("disaggregation_mode", "prefill"),
        ("pp_size", 2),
        ("dllm_algorithm", "x"),
        ("tp_size", 2),
        ("enable_deterministic_inference", True),
    ],
)
def test_unsupported_servers_refuse_by_flag(flag: str, value: object) -> None:
    refusals = support.server_refusals(SimpleNamespace(**{flag: value}))
    assert [refusal.flag for refusal in refusals] == ["--" + flag.replace("_", "-")]
    with pytest.raises(UnsupportedError, match=flag.replace("_", "-")):
        support.check_server(SimpleNamespace(**{flag: value}))


def test_a_plain_server_refuses_nothing() -> None:
    args = SimpleNamespace(
        speculative_algorithm=None, disaggregation_mode="null", pp_size=1, tp_size=1, dp_size=2
    )
    assert support.server_refusals(args) == []


@pytest.mark.parametrize(
    ("asked", "chains", "field"),
    [(10, 2, "max_total_tokens"), (None, 99, "n"), (10**9, 1, "max_total_tokens")],
)
def test_token_caps(asked: int | None, chains: int, field: str) -> None:
    with pytest.raises(UnsupportedError) as error:
        support.total_tokens_of({}, asked, Limits(max_chains=8), horizon=8, n=chains)
    assert error.value.field == field


@pytest.mark.parametrize(("name", "limit"), [("prefetch", "max_prefetch"), ("tries", "max_tries")])
def test_caps_of_parameters_wherever_they_stand(name: str, limit: str) -> None:
    power: dict[str, Any] = {"sampler": "power", name: 9}
    requests: dict[str, dict[str, Any]] = {
        "": power,
        "base.": {"sampler": "vote", "base": power},
        "refine.": {"sampler": "branch", "refine": power},
    }
    limits = Limits(max_prefetch=8, max_tries=8)
    for inside, request in requests.items():
        needs = parse_request(request).needs
        assert isinstance(needs, Needs)
        with pytest.raises(LimitError, match=f"limits.{limit}") as error:
            support.check_caps(limits, needs.capped)
        assert (error.value.field, error.value.value) == (f"{inside}{name}", 9)
        support.check_caps(Limits(), needs.capped)


def letters(stop: Any, **params: Any) -> tuple[StopRule, TextRule]:
    manager = SimpleNamespace(tokenizer=Letters(), model_config=SimpleNamespace(hf_eos_token_id=[0]))
    params = {"stop": stop, **params}
    return StopRule.of(manager, params), TextRule.of(manager, params)


def test_a_stop_string_is_found_across_the_cut() -> None:
    rule, text = letters(["cd"])
    ids = Letters().encode("abcde")
    assert rule.first_stop(ids, 3) == 4  # kept "abc", generated "de"
    reason = rule.finish_reason(ids[:4], finished=True)
    assert reason == {"type": "stop", "matched": "cd"}
    assert text.final_text(ids[:4], reason) == "ab"


def test_token_stops_and_no_stop_trim() -> None:
    rule, text = letters(None)
    assert rule.first_stop([1, 0, 2], 0) == 2
    reason = rule.finish_reason([1, 0], finished=True)
    assert (reason, text.final_text([1, 0], reason)) == ({"type": "stop", "matched": 0}, "a")
    assert letters(None, ignore_eos=True)[0].first_stop([1, 0, 2], 0) is None


def test_missing_statistics_fail_the_request() -> None:
    with pytest.raises(HostError, match="sglang-power check"):
        _rows({}, [1, 2])
    for row in ([float("nan")] * 7, [-1.0, float("nan"), *[0.0] * 5]):
        with pytest.raises(HostError, match="not numbers"):
            _rows({"sglang_power_rows": [row]}, [1])


async def lines(*texts: str) -> AsyncGenerator[str, None]:
    for text in texts:
        await asyncio.sleep(0)
        yield text


def chunk(index: int, text: str, reason: str | None = None) -> str:
    choice = {"index": index, "text": text, "finish_reason": reason}
    return f"data: {json.dumps({'choices': [choice]})}\n\n"


async def test_the_last_chunk_with_choices_carries_the_reports() -> None:
    notes = StreamNotes()
    notes.reports = {1: {"chain": "b"}, 0: {"chain": "a"}}
    notes.progress.put_nowait({"step": 3})
    usage = 'data: {"choices": [], "usage": {}}\n\n'
    source = lines(
        chunk(0, "x"), chunk(0, "", "stop"), chunk(1, "y"), chunk(1, "", "stop"), usage, "data: [DONE]\n\n"
    )
    out = [line async for line in _noted(source, notes, None)]
    comments = [line for line in out if line.startswith(":")]
    data = [line for line in out if not line.startswith(":")]
    assert comments == [': sglang-power {"step": 3}\n\n']
    with_reports = [i for i, line in enumerate(data) if "metadata" in line]
    assert with_reports == [3]
    assert json.loads(data[3][6:])["metadata"]["power"] == [{"chain": "a"}, {"chain": "b"}]
    assert data[-2:] == [usage, "data: [DONE]\n\n"]


async def test_an_error_before_the_first_line_reaches_the_caller() -> None:
    async def failing() -> AsyncGenerator[str, None]:
        raise ValueError("alpha=0.5")
        yield ""

    with pytest.raises(ValueError, match="alpha"):
        await anext(_never_torn(_noted(failing(), StreamNotes(), None), None))


@pytest.mark.parametrize(
    "metadata", ["{sampler}", '{"sampler": "power"}'], ids=["unreadable", "contradiction"]
)
async def test_a_mistake_in_a_stream_is_said_by_the_stream(metadata: str) -> None:
    """/v1/messages has sent its 200 when it makes the stream: what is raised there cuts the connection."""

    async def planned(*_: object) -> AsyncGenerator[str, None]:
        raise RequestError("sampler", "cot", "contradicts another place", "Name it in one place")
        yield ""

    serving = SimpleNamespace(
        tokenizer_manager=SimpleNamespace(served_model_name="m", incremental_streaming_output=False)
    )
    body = {"messages": [], "custom_params": {"sampler": "cot"}, "metadata": {"sglang_power": metadata}}
    raw = SimpleNamespace(_json=body, url=SimpleNamespace(path="/v1/messages"))
    lines = stream(planned, serving, GenerateReqInput(text="x", sampling_params={}), None, raw)
    with pytest.raises(RequestError, match="contradicts another place"):
        await anext(lines)


def test_every_hook_has_our_side_and_a_target_or_is_optional() -> None:
    for hook in HOOKS:
        assert callable(hook.load())
        assert hook.exists() or hook.optional, hook.target


def test_a_hook_that_is_not_applied_is_seen() -> None:
    hook = Hook("json.dumps", "around", "sglang_power.sglang_host.entry:uvicorn_run", "x", ("main",))
    assert hook.state() == "missing"
    assert Hook("json.nothing", "around", hook.own, "x", ()).state() == "absent"
    own = hook.load()

    def wrapper() -> Any:
        return own

    assert _leads_to(wrapper, own)
