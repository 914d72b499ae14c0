"""`return_statistics` without a server: what is asked, refused, marked, taken of a batch, and handed over."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from letters import Letters
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang_power.errors import HostError, RequestError
from sglang_power.server.config import ServerConfig
from sglang_power.sglang_host import entry
from sglang_power.sglang_host.child_params import (
    META_KEY,
    POLICY,
    REPORTED,
    REPORTED_FIELD,
    STATISTICS_KEY,
)
from sglang_power.sglang_host.scheduler.reported import ReportedRow, ReportedRows, reported_row
from sglang_power.sglang_host.tokenizer import intake, plain_answers
from sglang_power.sglang_host.tokenizer.body import NO_BODY, Body
from sglang_power.sglang_host.tokenizer.openai import StreamNotes
from sglang_power.sglang_host.tokenizer.places import Written
from sglang_power.sglang_host.tokenizer.plan import PlainPlan, Plan, PolicyPlan, asks_for_power, plan_request
from sglang_power.sglang_host.tokenizer.statistics import AnswerStatistics
from sglang_power.types import REPORTED_STATISTICS

Json = dict[str, Any]

ASKED: Json = {"return_statistics": True}
STOP: Json = {"type": "stop", "matched": 0}


def manager(**server_args: Any) -> SimpleNamespace:
    """What planning reads of a TokenizerManager."""
    return SimpleNamespace(
        tokenizer=Letters(),
        model_config=SimpleNamespace(vocab_size=100, hf_eos_token_id=[0]),
        server_args=SimpleNamespace(**server_args),
        served_model_name="m",
        context_len=1000,
        num_reserved_tokens=0,
        enable_metrics=False,
    )


DEFAULTED = ServerConfig(presets={"p": {"sampler": "power"}}, defaults={"*": "p"})
POLICED = ServerConfig(presets={"p": {"sampler": "top_n_sigma"}}, defaults={"*": "p"})


def planned(
    params: Json, config: ServerConfig | None = None, body: Body = NO_BODY, host: Any = None, **fields: Any
) -> Plan:
    """The plan of one prompt."""
    obj = GenerateReqInput(text="a", sampling_params=params, **fields)
    (plan,) = plan_request(host or manager(), obj, body, config or ServerConfig())
    return plan


# --- asked and refused ---


@pytest.mark.parametrize(
    ("params", "body"),
    [
        ({"custom_params": ASKED}, {}),
        ({"custom_params": {**ASKED, "sampler": "none", "alpha": 3}}, {}),
        ({"custom_params": {**ASKED, "seed": 3, "thinking_budget": 5}}, {}),
        ({"custom_params": {"sglang_power": {**ASKED, "sampler": None}}}, {}),
        (ASKED, {}),
        ({}, ASKED),
        ({}, {"metadata": {"sglang_power": '{"return_statistics": true}'}}),
    ],
)
def test_without_a_sampler_sglang_answers(params: Json, body: Json) -> None:
    assert planned(params, body=Body(body)) == PlainPlan(statistics=True)
    obj = GenerateReqInput(text="a", sampling_params=params)
    assert asks_for_power(manager(), obj, Body(body), ServerConfig()), "streams carry reports"


@pytest.mark.parametrize("value", [False, None])
def test_false_and_null_ask_for_nothing(value: object) -> None:
    for body in ({"return_statistics": value}, {"custom_params": {"return_statistics": value}}):
        assert intake.asked(Written({}, Body(body)), None) is None
        assert intake.asked(Written({}, Body(body)), "p") == intake.Asked(
            {"preset": "p"}, explicit=False, origins={} if value is None else intake_origin(body)
        )


def intake_origin(body: Json) -> Json:
    """Where a body names it."""
    return {"return_statistics": ("custom_params." if "custom_params" in body else "") + "return_statistics"}


@pytest.mark.parametrize("wrong", [1, 0, "true", [True], {}])
def test_it_is_true_or_false(wrong: object) -> None:
    with pytest.raises(RequestError, match="neither true nor false") as error:
        planned({"custom_params": {"return_statistics": wrong}})
    assert (error.value.field, error.value.value) == ("custom_params.return_statistics", wrong)


@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ({"custom_params": {**ASKED, "alpha": 2}}, "custom_params.alpha"),
        ({"custom_params": {"sglang_power": {**ASKED, "typo": 2}}}, "custom_params.sglang_power.typo"),
        ({"sglang_power": ASKED, "strict": True}, "strict"),
    ],
)
def test_parameters_of_samplers_are_not_lost_beside_it(extra: Json, field: str) -> None:
    with pytest.raises(RequestError, match="none is named") as error:
        planned({}, body=Body(extra))
    assert error.value.field == field


def test_per_step_policies_bring_them() -> None:
    plan = planned({"custom_params": {"sampler": "top_n_sigma", **ASKED}})
    assert isinstance(plan, PolicyPlan)
    assert plan.statistics
    defaulted = planned({"custom_params": ASKED}, POLICED)
    assert isinstance(defaulted, PolicyPlan)
    assert defaulted.statistics
    unasked = planned({"custom_params": {"sampler": "top_n_sigma", "return_statistics": False}})
    assert isinstance(unasked, PolicyPlan)
    assert not unasked.statistics


@pytest.mark.parametrize(
    ("custom", "hint"),
    [
        ({"sampler": "power"}, "none"),
        ({"sampler": "vote", "samples": 2}, "return_rows"),
        ({"sampler": "best_of", "samples": 2}, "return_rows"),
        ({"sampler": "cot"}, "return_rows"),
        ({"sampler": "branch"}, "return_rows"),
        ({"sampler": "kl_guided", "prompt_without": "a"}, "none"),
    ],
)
def test_samplers_of_whole_answers_refuse_it(custom: Json, hint: str) -> None:
    with pytest.raises(RequestError, match=hint) as error:
        planned({"custom_params": {**custom, **ASKED}, "max_new_tokens": 8})
    assert error.value.field == "custom_params.return_statistics"
    assert custom["sampler"] in error.value.problem


def test_a_default_sampler_refuses_it_and_none_opts_out() -> None:
    """Even where the default would have left the request to SGLang."""
    for more in ({}, {"temperature": 0}, {"max_new_tokens": 1}):
        with pytest.raises(RequestError, match="none"):
            planned({"custom_params": ASKED, **more}, DEFAULTED)
    plan = planned({"custom_params": {**ASKED, "sampler": "none"}}, DEFAULTED)
    assert plan == PlainPlan(statistics=True)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"speculative_algorithm": "EAGLE"}, "--speculative-algorithm"),
        ({"pp_size": 2}, "--pp-size"),
        ({"watermark_default_enabled": True}, "--watermark-default-enabled"),
    ],
)
def test_servers_without_rows_of_their_own_refuse_it(flags: Json, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        planned({"custom_params": ASKED}, host=manager(**flags))
    assert planned({}, host=manager(**flags)) == PlainPlan()


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/v1/messages", "/v1/responses"])
def test_routes_without_room_refuse_it(path: str) -> None:
    for custom in ({}, {"sampler": "top_n_sigma"}):
        with pytest.raises(RequestError, match="no room"):
            planned({}, body=Body.at(path, {"custom_params": {**custom, **ASKED}}))


def test_fields_that_make_the_rows_another_models_refuse_it() -> None:
    for field, value in {"beam_width": 2, "watermark": {"key": "ab"}}.items():
        with pytest.raises(RequestError, match="or return_statistics") as error:
            planned({"custom_params": ASKED, field: value})
        assert error.value.field == field
    nested = {"custom_params": {"sglang_power": ASKED}}
    with pytest.raises(RequestError, match="custom_logit_processor"):
        planned(nested, custom_logit_processor="code")


# --- marked ---


def test_the_mark_leaves_the_rest_as_it_is() -> None:
    custom = {**ASKED, "sglang_power": ASKED, "thinking_budget": 5, "sampler": "none"}
    obj = GenerateReqInput(text="a", sampling_params={"n": 2, "custom_params": custom})
    plain_answers.mark(obj, [PlainPlan(statistics=True)])
    assert obj.sampling_params == {"n": 2, "custom_params": {"thinking_budget": 5, "sampler": REPORTED}}
    bare = GenerateReqInput(text="a", sampling_params=None)
    plain_answers.mark(bare, [PlainPlan(statistics=True)])
    assert bare.sampling_params == {"custom_params": {"sampler": REPORTED}}


def test_prompts_that_ask_for_nothing_are_not_touched() -> None:
    params: list[Json] = [{"n": 1}, {"n": 2}]
    obj = GenerateReqInput(text=["a", "b"], sampling_params=params)
    plain_answers.mark(obj, [PlainPlan(), PlainPlan()])
    assert obj.sampling_params is params
    plain_answers.mark(obj, [PlainPlan(), PlainPlan(statistics=True)])
    assert obj.sampling_params[0] is params[0]
    assert obj.sampling_params[1] == {"n": 2, "custom_params": {"sampler": REPORTED}}


def test_the_mark_cannot_be_sent() -> None:
    with pytest.raises(RequestError, match="unknown sampler"):
        planned({"custom_params": {"sampler": REPORTED}})


# --- taken of a batch ---


def request(custom: Json | None, **sampling: Any) -> SimpleNamespace:
    """What the scheduler reads of SGLang's request."""
    neutral: Json = {"frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0}
    return SimpleNamespace(
        sampling_params=SimpleNamespace(custom_params=custom, **(neutral | sampling)), customized_info=None
    )


def test_marked_requests_and_policies_are_reported() -> None:
    for custom in (None, {}, {"sampler": POLICY}, {"sampler": "none"}, {REPORTED_FIELD: True}):
        assert reported_row(request(custom)) is None
    assert reported_row(request({"sampler": POLICY, REPORTED_FIELD: True})) == ReportedRow(penalised=False)
    for name, value in (("frequency_penalty", 1.0), ("presence_penalty", -1.0), ("repetition_penalty", 0.9)):
        assert reported_row(request({"sampler": REPORTED}, **{name: value})) == ReportedRow(penalised=True)


FREE, PENALISED = ReportedRow(penalised=False), ReportedRow(penalised=True)


def batch_info(**fields: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"logit_bias": None, "power_unpenalised": None, **fields})


def test_rows_follow_filtering_and_merging() -> None:
    rows = ReportedRows((None, FREE, PENALISED)).keep([2, 0]).followed_by(ReportedRows((None, FREE)))
    assert rows.rows == (PENALISED, None, None, FREE)
    assert (rows.indices, rows.penalised) == ([0, 3], [0])


def test_the_base_law_has_masks_and_bias_and_no_penalty() -> None:
    """The second row is penalised, the first is another request's."""
    raw = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
    bias = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 0.0, 0.0]])
    rows = ReportedRows((None, PENALISED, FREE))
    free = rows.unpenalised(raw.clone())
    logits = raw + bias
    logits[1] -= torch.tensor([0.0, 7.0, 0.0])
    logits[1, 2] = -math.inf  # a grammar's
    output = SimpleNamespace(next_token_logits=logits, auxiliary_device_output=None)
    base = rows.base_logits(output, batch_info(logit_bias=bias, power_unpenalised=free))
    assert base.tolist() == [[0.5, 1.0, -math.inf], [3.0, 0.0, 0.0]]
    logits[:] = 0.0
    assert base[1].tolist() == [3.0, 0.0, 0.0], "SGLang works in place"


def test_statistics_of_committed_tokens_are_attached() -> None:
    p = torch.tensor([0.5, 0.25, 0.25])
    rows = ReportedRows((FREE, None, FREE))
    output = SimpleNamespace(next_token_logits=p.log().repeat(3, 1), auxiliary_device_output=None)
    base = rows.base_logits(output, batch_info())
    rows.report(output, base, torch.tensor([1, 0, 0], dtype=torch.int32))
    host = output.auxiliary_device_output.copy_to_host(torch.clone)
    committed, skipped, other = request(None), request(None), request(None)
    commits = [SimpleNamespace(output_index=0), SimpleNamespace(output_index=4), None]
    host.consume(SimpleNamespace(reqs=[committed, other, skipped]), commits)
    assert (skipped.customized_info, other.customized_info) == (None, None)
    (record,) = committed.customized_info[STATISTICS_KEY]
    entropy = -float(p @ p.log())
    varentropy = float(p @ (p.log() + entropy) ** 2)
    assert record == pytest.approx([math.log(0.25), entropy, varentropy, 0.25], abs=1e-6)


# --- handed over ---


def response(records: list[list[float]] | None, finish: Json | None = None, tokens: int = 0) -> Json:
    """One of SGLang's responses; its lists are its own."""
    meta: Json = {"finish_reason": finish, "completion_tokens": tokens}
    return {"meta_info": meta if records is None else {**meta, STATISTICS_KEY: records}}


def record(value: float) -> list[float]:
    return [value] * len(REPORTED_STATISTICS)


def columns(*values: float | None) -> Json:
    return {name: list(values) for name in REPORTED_STATISTICS}


def test_cumulative_responses_have_all_so_far() -> None:
    statistics, records = AnswerStatistics(deltas=False), [record(1.0)]
    answer = response(records)
    first = statistics.of(answer)
    assert answer["meta_info"].keys() == {"finish_reason", "completion_tokens"}
    records.extend([record(2.0), record(math.nan)])
    whole = statistics.of(response(records, STOP, 3))
    assert first == columns(1.0)
    assert whole == columns(1.0, 2.0, None)
    assert len(records) == 3


def test_incremental_responses_have_their_own_and_openais_report_all() -> None:
    statistics, notes = AnswerStatistics(deltas=True), StreamNotes(incremental=True)
    for number, records in enumerate(([record(1.0)], [record(2.0), record(3.0)])):
        told = statistics.of(response(records, STOP if number else None, 1 + 2 * number))
        assert told["gap"] == [each[0] for each in records]
        notes.takes(0, {"meta_info": {"power": {"sampler": "none", "statistics": told}}})
    assert notes.reports[0]["statistics"] == columns(1.0, 2.0, 3.0)


def test_an_abort_of_a_request_that_waits_again_says_what_is_lost() -> None:
    statistics = AnswerStatistics(deltas=False)
    assert statistics.of(response(None, {"type": "abort"}, 2))["log_p"] == [None, None]
    assert AnswerStatistics(deltas=False).of(response(None, STOP))["log_p"] == []


def test_a_scheduler_that_sends_none_fails_the_request() -> None:
    with pytest.raises(HostError, match="sglang-power check"):
        AnswerStatistics(deltas=False).of(response(None, STOP, 2))


def test_other_requests_of_a_batch_do_not_get_the_padding() -> None:
    seen: list[Json] = []

    def original(_manager: Any, _meta: Json, _state: Any, info: Json, _index: int, *_: Any) -> None:
        seen.append(info)

    info = {STATISTICS_KEY: [[None], [record(1.0)]], META_KEY: [[record(2.0)], [None]], "theirs": [1, 2]}
    for index in range(2):
        entry.update_request_meta_info(original, None, {}, None, info, index, None)
    assert [set(each) for each in seen] == [{META_KEY, "theirs"}, {STATISTICS_KEY, "theirs"}]
