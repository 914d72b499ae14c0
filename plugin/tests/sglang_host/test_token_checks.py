"""Prompts, ids, stops and numbers that would end SGLang's scheduler: refused by name for every sampler."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from least_requests import REQUIRED
from letters import Letters
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang_power.errors import RequestError
from sglang_power.request import samplers
from sglang_power.server.config import ServerConfig
from sglang_power.sglang_host.tokenizer.body import NO_BODY, Body
from sglang_power.sglang_host.tokenizer.plan import PlainPlan, plan_arm, plan_request
from sglang_power.sglang_host.tokenizer.token_checks import check_sampling

VOCAB = 100
MANAGER = SimpleNamespace(
    tokenizer=Letters(),
    model_config=SimpleNamespace(vocab_size=VOCAB, hf_eos_token_id=[0]),
    server_args=SimpleNamespace(),
    served_model_name="m",
    context_len=1000,
    num_reserved_tokens=0,
)
DEFAULT = ServerConfig(presets={"p": {"sampler": "power"}}, defaults={"*": "p"})
SAMPLERS = [{"sampler": name, **REQUIRED.get(name, {})} for name in samplers()]
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=[one["sampler"] for one in SAMPLERS])

BAD_PARAMS: list[tuple[dict[str, Any], str]] = [
    ({"stop_token_ids": [VOCAB]}, "stop_token_ids"),
    ({"stop_token_ids": [151645]}, "stop_token_ids"),
    ({"stop_token_ids": [5, -1]}, "stop_token_ids"),
    ({"stop_token_ids": [2**63]}, "stop_token_ids"),
    ({"stop_token_ids": ["a"]}, "stop_token_ids"),
    ({"stop_token_ids": 5}, "stop_token_ids"),
    ({"logit_bias": {str(VOCAB): 1.0}}, "logit_bias"),
    ({"logit_bias": {"-1": 1.0}}, "logit_bias"),
    ({"logit_bias": {"x": 1.0}}, "logit_bias"),
    ({"logit_bias": {"5": math.nan}}, "logit_bias.5"),
    ({"logit_bias": {"5": math.inf}}, "logit_bias.5"),
    ({"logit_bias": {"5": 1e39}}, "logit_bias.5"),
    ({"logit_bias": {"5": "much"}}, "logit_bias.5"),
    ({"logit_bias": [5]}, "logit_bias"),
    ({"stop": ""}, "stop"),
    ({"stop": [""]}, "stop"),
    ({"stop": ["b", ""]}, "stop"),
    ({"stop": [5]}, "stop"),
    ({"min_new_tokens": -1}, "min_new_tokens"),
    ({"min_new_tokens": 1.5}, "min_new_tokens"),
    ({"min_new_tokens": 2**63}, "min_new_tokens"),
    ({"n": 10**9}, "n"),
    ({"foo": 1}, "foo"),
]

BAD_OBJECTS: list[tuple[dict[str, Any], str]] = [
    ({"text": ""}, "text"),
    ({"text": ["a", ""]}, "text.1"),
    ({"input_ids": []}, "input_ids"),
    ({"input_ids": [[1], []]}, "input_ids.1"),
    ({"input_ids": [1, VOCAB]}, "input_ids"),
    ({"input_ids": [1, -1]}, "input_ids"),
    ({"input_ids": [1, 2**63]}, "input_ids"),
    ({"input_ids": [1, "a"]}, "input_ids"),
    ({"input_ids": [[1], [VOCAB]]}, "input_ids.1"),
    ({"text": "a", "token_ids_logprob": [VOCAB]}, "token_ids_logprob"),
    ({"text": ["a", "b"], "token_ids_logprob": [[1], [-1]]}, "token_ids_logprob"),
    ({"text": "a", "top_logprobs_num": VOCAB + 1}, "top_logprobs_num"),
    ({"text": "a", "top_logprobs_num": -1}, "top_logprobs_num"),
]


def request(sampler: dict[str, Any] | None, params: dict[str, Any], **fields: Any) -> GenerateReqInput:
    own = {} if sampler is None else {"custom_params": sampler}
    return GenerateReqInput(sampling_params={"max_new_tokens": 8, **own, **params}, **fields)


def refusal(obj: GenerateReqInput, body: Body = NO_BODY) -> RequestError:
    with pytest.raises(RequestError) as error:
        plan_request(MANAGER, obj, body, ServerConfig())
    return error.value


@every_sampler
@pytest.mark.parametrize(("params", "field"), BAD_PARAMS, ids=str)
def test_no_sampler_takes_them(sampler: dict[str, Any], params: dict[str, Any], field: str) -> None:
    assert refusal(request(sampler, params, text="a")).field == field
    assert refusal(request(sampler, params, text=["a", "b"])).field == field


@every_sampler
@pytest.mark.parametrize(("fields", "name"), BAD_OBJECTS, ids=str)
def test_no_sampler_takes_such_prompts(sampler: dict[str, Any], fields: dict[str, Any], name: str) -> None:
    assert refusal(request(sampler, {}, **fields)).field == name


@pytest.mark.parametrize(
    ("params", "fields"),
    [
        *[(params, {"text": "a"}) for params, _ in BAD_PARAMS],
        *[({}, fields) for fields, _ in BAD_OBJECTS],
    ],
    ids=str,
)
def test_a_default_leaves_them_to_sglang_and_an_arm_cannot_serve_them(
    params: dict[str, Any], fields: dict[str, Any]
) -> None:
    obj = request(None, params, **fields)
    (plan,) = plan_request(MANAGER, obj, NO_BODY, DEFAULT)
    assert isinstance(plan, PlainPlan)
    assert plan.fallback is not None
    with pytest.raises(RequestError):
        plan_arm(MANAGER, obj, NO_BODY, ServerConfig(), {"sampler": "power"})


@pytest.mark.parametrize(
    ("fields", "path", "body", "name"),
    [
        ({"text": ["a", ""]}, "/v1/completions", {"prompt": ["a", ""]}, "prompt.1"),
        ({"input_ids": [[1], [VOCAB]]}, "/v1/completions", {"prompt": [[1], [VOCAB]]}, "prompt.1"),
        ({"input_ids": [VOCAB]}, "/v1/completions", {"prompt": [VOCAB]}, "prompt"),
        ({"text": ""}, "/v1/chat/completions", {"messages": [{"role": "user", "content": ""}]}, "messages"),
        ({"text": ""}, "/v1/responses", {"input": ""}, "input"),
        ({"text": ""}, "/api/generate", {"prompt": ""}, "prompt"),
        ({"text": ""}, "/vertex_generate", {"instances": [{"text": ""}]}, "text"),
    ],
)
def test_clients_read_their_own_name_of_the_prompt(
    fields: dict[str, Any], path: str, body: dict[str, Any], name: str
) -> None:
    obj = request({"sampler": "power"}, {}, **fields)
    own = {} if path == "/vertex_generate" else {"sampler": "power"}
    assert refusal(obj, Body.at(path, {**body, **own})).field == name


def test_embeddings_of_plain_requests_are_sglangs_own() -> None:
    embeds = [[[0.0]], [[1.0]]]
    plans = plan_request(
        MANAGER, GenerateReqInput(input_embeds=embeds, sampling_params=[{}, {}]), NO_BODY, ServerConfig()
    )
    assert plans == [PlainPlan(), PlainPlan()]


def test_sampling_parameters_are_one_per_prompt() -> None:
    params = [{"custom_params": {"sampler": "power"}}] * 2
    for fields in ({"input_ids": [1, 2]}, {"text": "ab"}, {"text": ["a"]}, {"input_ids": [[1], [2], [3]]}):
        assert refusal(GenerateReqInput(sampling_params=params, **fields)).field == "sampling_params"


def test_prompts_beside_one_that_names_a_sampler_are_checked_too() -> None:
    params = [{"custom_params": {"sampler": "power"}}, {}]
    assert refusal(GenerateReqInput(text=["a", ""], sampling_params=params)).field == "text.1"


def test_each_prompt_answers_for_its_own_sampler() -> None:
    params = [{}, {"custom_params": {"sampler": "power"}, "stop_token_ids": [1]}]
    plans = plan_request(MANAGER, GenerateReqInput(text=["a", "b"], sampling_params=params), NO_BODY, DEFAULT)
    assert len(plans) == 2


@every_sampler
def test_what_a_client_may_send_is_served(sampler: dict[str, Any]) -> None:
    params = {
        "stop_token_ids": [0, VOCAB - 1],
        "stop": ["b"],
        "logit_bias": {"0": -100, str(VOCAB - 1): -math.inf},
        "min_new_tokens": 3,
    }
    for fields in ({"text": "a"}, {"input_ids": [0, VOCAB - 1]}):
        (plan,) = plan_request(MANAGER, request(sampler, params, **fields), NO_BODY, ServerConfig())
        assert not isinstance(plan, PlainPlan)


class Beginning(Letters):
    """Like many tokenizers, it begins every text with a token of its own."""

    def encode(self, text: str, **_: Any) -> list[int]:
        return [1, *super().encode(text)]


class Blind(Letters):
    """It knows no blanks."""

    def encode(self, text: str, **_: Any) -> list[int]:
        return super().encode(text.replace(" ", ""))


@pytest.mark.parametrize(
    ("tokenizer", "text", "served"),
    [
        (Beginning(), "", True),
        (Blind(), " ", False),
        (Blind(), " " * 100, False),
        (Blind(), " " * 100 + "a", True),
    ],
)
def test_what_counts_are_tokens_not_letters(tokenizer: Letters, text: str, served: bool) -> None:
    manager = SimpleNamespace(**{**vars(MANAGER), "tokenizer": tokenizer})
    (plan,) = plan_request(manager, request(None, {}, text=text), NO_BODY, DEFAULT)
    assert isinstance(plan, PlainPlan) is not served


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"sampler": "kl_guided", "prompt_without": " "}, "prompt_without"),
        ({"sampler": "kl_guided", "ids_without": [VOCAB]}, "ids_without"),
        ({"sampler": "power", "initial_text": " "}, "initial_text"),
        ({"sampler": "power", "initial_ids": [VOCAB]}, "initial_ids"),
        ({"sampler": "cot", "fork_at": "after_prefix", "fork_prefix": " "}, "fork_prefix"),
        ({"sampler": "entropix", **REQUIRED["entropix"], "insert_ids": [VOCAB]}, "insert_ids"),
    ],
    ids=str,
)
def test_other_texts_and_ids_of_a_request(values: dict[str, Any], field: str) -> None:
    manager = SimpleNamespace(**{**vars(MANAGER), "tokenizer": Blind()})
    with pytest.raises(RequestError) as error:
        plan_request(manager, request(values, {}, text="a"), NO_BODY, ServerConfig())
    assert error.value.field == field


@pytest.mark.parametrize(
    ("limits", "params", "sampler", "message"),
    [
        (
            {"max_horizon": 64},
            {},
            {"sampler": "power"},
            "max_new_tokens=None: SGLang's 128",
        ),
        ({"max_horizon": 64}, {"max_new_tokens": 65}, {"sampler": "power"}, "max_new_tokens=65: above"),
        (
            {},
            {"n": 9},
            {"sampler": "vote", "samples": 8},
            "samples=8: for each of n=9 answers",
        ),
        ({}, {"n": 65}, {"sampler": "power"}, "n=65: above"),
        ({}, {"n": 65}, {"sampler": "top_n_sigma"}, "n=65: above"),
        (
            {"max_total_tokens": 99},
            {"max_new_tokens": 100},
            {"sampler": "power"},
            "max_new_tokens=100: 1 a",
        ),
        ({"max_total_tokens": 99}, {}, {"sampler": "power"}, "max_new_tokens=None: 1 answer(s) of up to 128"),
        (
            {},
            {"max_new_tokens": 100},
            {"sampler": "power", "max_total_tokens": 99},
            "max_total_tokens=99: 1 answer(s) of up to 100",
        ),
        (
            {},
            {"max_new_tokens": None, "min_new_tokens": 2000},
            {"sampler": "cot"},
            "min_new_tokens=2000: more than the 1000 tokens",
        ),
    ],
    ids=str,
)
def test_messages_name_what_was_sent(
    limits: dict[str, Any], params: dict[str, Any], sampler: dict[str, Any], message: str
) -> None:
    obj = GenerateReqInput(text="a", sampling_params={"custom_params": sampler, **params})
    with pytest.raises(RequestError) as error:
        plan_request(MANAGER, obj, NO_BODY, ServerConfig.model_validate({"limits": limits}))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("params", [{"temperature": "much"}, {"top_k": [1]}, {"min_p": {}}], ids=str)
def test_values_of_a_wrong_type_are_refused_where_sglang_fails(params: dict[str, Any]) -> None:
    """Policies and samplers of plain draws take the client's own temperature and truncation."""
    with pytest.raises(RequestError) as refused:
        check_sampling(MANAGER, SimpleNamespace(), params)
    assert refused.value.field == "sampling_params"
    check_sampling(MANAGER, SimpleNamespace(), {"temperature": 0.5, "top_k": 3, "min_p": 0.1})
