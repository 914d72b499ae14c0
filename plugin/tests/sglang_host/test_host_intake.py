"""What a request asks for, whichever route it came by and wherever it says so. No server."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang_power.errors import RequestError
from sglang_power.request import NO_SAMPLER, samplers
from sglang_power.server.config import ServerConfig
from sglang_power.sglang_host.tokenizer import intake
from sglang_power.sglang_host.tokenizer.body import NO_BODY, Body, body_of
from sglang_power.sglang_host.tokenizer.intake import Asked
from sglang_power.sglang_host.tokenizer.places import Written, host_names, own_names, without_own, written

Json = dict[str, Any]

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
OLLAMA = "/api/chat"
GENERATE, VERTEX = "/generate", "/vertex_generate"


def asked(
    params: Json, body: Json | None = None, default: str | None = None, path: str = GENERATE, **more: Any
) -> Asked | None:
    """What a request asks for."""
    sent = NO_BODY if body is None else Body.at(path, body)
    return intake.asked(Written(params, sent, **more), default)


def values(*args: Any, **more: Any) -> Json:
    """The parameters that a request asks with."""
    found = asked(*args, **more)
    assert found is not None
    assert found.explicit
    return found.values


# --- where a sampler may be named ---


@pytest.mark.parametrize(
    ("params", "body", "path"),
    [
        ({"custom_params": {"sampler": "power", "alpha": 2.0}}, None, GENERATE),
        ({"sampler": "power", "alpha": 2.0, "n": 3}, None, GENERATE),
        ({"sampler": "power", "alpha": 2.0}, {"instances": [], "parameters": {}}, VERTEX),
        ({"custom_params": {"sglang_power": {"sampler": "power", "alpha": 2.0}}}, None, GENERATE),
        ({"custom_params": {"sglang_power": '{"sampler": "power", "alpha": 2.0}'}}, None, GENERATE),
        ({}, {"text": "x", "custom_params": {"sampler": "power", "alpha": 2.0}}, GENERATE),
        ({}, {"text": "x", "sampler": "power", "alpha": 2.0}, GENERATE),
        ({}, {"text": "x", "sglang_power": {"sampler": "power", "alpha": 2.0}}, GENERATE),
        ({}, {"instances": [], "sampler": "power", "alpha": 2.0}, VERTEX),
        ({}, {"messages": [], "sampler": "power", "alpha": 2.0, "n": 3}, CHAT),
        ({}, {"prompt": "", "sampler": "power", "alpha": 2.0, "best_of": 1}, COMPLETIONS),
        ({}, {"messages": [], "metadata": {"sglang_power": '{"sampler": "power", "alpha": 2.0}'}}, CHAT),
        ({}, {"metadata": {"sglang_power": '{"alpha": 2.0}'}, "sampler": "power"}, CHAT),
        ({}, {"input": "x", "custom_params": {"sampler": "power", "alpha": 2.0}}, RESPONSES),
        ({}, {"input": "x", "text": {"verbosity": "low"}, "sampler": "power", "alpha": 2.0}, RESPONSES),
        ({}, {"messages": [], "custom_params": {"sampler": "power", "alpha": 2.0}}, MESSAGES),
        ({}, {"messages": [], "sampler": "power", "alpha": 2.0, "max_tokens": 5}, MESSAGES),
        ({}, {"messages": [], "options": {"sampler": "power", "alpha": 2.0, "seed": 3}}, OLLAMA),
        ({}, {"messages": [], "options": {"custom_params": {"sampler": "power", "alpha": 2.0}}}, OLLAMA),
        ({}, {"messages": [], "custom_params": {"sampler": "power", "alpha": 2.0}}, OLLAMA),
        ({}, {"messages": [], "sampler": "power", "options": {"alpha": 2.0}}, OLLAMA),
    ],
)
def test_a_sampler_and_its_parameters_may_stand_in_any_place(
    params: Json, body: Json | None, path: str
) -> None:
    assert values(params, body, path=path) == {"sampler": "power", "alpha": 2.0}


def test_what_sglang_uses_itself_keeps_its_meaning() -> None:
    """`n` is the number of answers even beside top_n_sigma; `top_k` of the body truncates, as ever."""
    body = {"messages": [], "sampler": "top_n_sigma", "n": 2, "top_k": 5, "seed": 3, "stop": ["x"]}
    assert values({}, body, path=CHAT) == {"sampler": "top_n_sigma"}
    assert values({}, {**body, "sampler": "power"}, path=CHAT) == {"sampler": "power"}


@pytest.mark.parametrize(("path", "read"), [(GENERATE, True), (OLLAMA, True), (VERTEX, True), (CHAT, False)])
def test_names_that_sglang_reads_elsewhere_are_ours_at_the_top_level(path: str, read: bool) -> None:
    """On chat they are SGLang's, and come by `named`; on /generate nobody else would read them."""
    shared = {"seed": 3, "top_p": 0.5, "top_k": 7, "min_p": 0.1}
    found = values({}, {"sampler": "power", **shared, "n": 2}, path=path)
    assert found == {"sampler": "power", **(shared if read else {})}
    assert asked({}, {**shared, "n": 2}, path=path) is None


def test_the_only_names_that_we_share_with_sglang_are_known() -> None:
    """A new one changes what the top level of a body means: say so in the documents."""
    ours = {name for model in samplers().values() for name in model.model_fields}
    assert ours & host_names() == {"n", "seed", "top_p", "top_k", "min_p"}
    assert own_names() >= {"sampler", "preset", "strict", "on_temperature", "alpha", "steps"}


@pytest.mark.parametrize(
    "body",
    [
        {"alpha": 2.0, "score": "mine", "policy": "mine", "k": 3},
        {"custom_params": {"mine": 1}},
        {"metadata": {"user_id": "u", "sglang_power": "{}"}},
        {"metadata": "text"},
        {"sampler": None, "alpha": 2.0},
        {"custom_params": {"sampler": None, "preset": None, "alpha": None}},
    ],
)
@pytest.mark.parametrize("path", [GENERATE, CHAT, RESPONSES, OLLAMA])
def test_foreign_fields_are_not_ours(body: Json, path: str) -> None:
    """Bodies carry what other gateways read; null is absent everywhere."""
    assert asked({}, body, path=path) is None
    found = asked({}, body, "chat", path)
    assert found == Asked({"preset": "chat"}, explicit=False)


@pytest.mark.parametrize("params", [{}, {"custom_params": {"mine": 1}}, {"sampler": "none"}])
def test_other_requests_are_not_ours(params: Json) -> None:
    assert asked(params) is None


@pytest.mark.parametrize("place", ["sampling_params", "body"])
def test_custom_params_of_a_logit_processor_are_the_processors(place: str) -> None:
    foreign = {"sampler": "theirs", "preset": 7, "alpha": "x"}
    nested = {**foreign, "sglang_power": {"sampler": "power", "alpha": 2.0}}

    def ask(custom: Json, processor: bool) -> Asked | None:
        params = {"custom_params": custom} if place == "sampling_params" else {}
        body = {"text": "x"} if place == "sampling_params" else {"text": "x", "custom_params": custom}
        return asked(params, body, processor=processor)

    assert ask(foreign, processor=True) is None
    found = ask(nested, processor=True)
    assert found is not None
    assert found.values == {"sampler": "power", "alpha": 2.0}
    with pytest.raises(RequestError):
        ask(nested, processor=False)


def test_each_prompt_has_its_own_logit_processor() -> None:
    obj = GenerateReqInput(
        text=["a", "b"], sampling_params=[{"n": 1}, {"n": 2}], custom_logit_processor=["code", None]
    )
    assert [one.processor for one in written(obj, NO_BODY)] == [True, False]
    one = GenerateReqInput(text="a", sampling_params=None, custom_logit_processor="code")
    assert [(each.params, each.processor) for each in written(one, NO_BODY)] == [({}, True)]


def test_what_sglang_itself_puts_into_custom_params_is_not_asked() -> None:
    """Of models that reason; the client never wrote it."""
    internal = {"__sglang_reasoning_end_token_ids": [3]}
    assert asked({"custom_params": internal}) is None
    assert values({"custom_params": {**internal, "sampler": "power"}}) == {"sampler": "power"}


# --- parameters without a sampler ---


@pytest.mark.parametrize(
    ("params", "body", "field"),
    [
        ({"custom_params": {"alpha": 2.0}}, None, "custom_params.alpha"),
        ({"custom_params": {"strict": True}}, None, "custom_params.strict"),
        ({"custom_params": {"seed": 1, "steps": 2}}, None, "custom_params.steps"),
        ({"proposal_temperature": 0.5}, None, "sampling_params.proposal_temperature"),
        ({}, {"on_temperature": "ignore"}, "on_temperature"),
        ({}, {"metadata": {"sglang_power": '{"alpha": 2}'}}, "metadata.sglang_power.alpha"),
        ({}, {"metadata": {"sglang_power": '{"sampler": null, "alpha": 2}'}}, "metadata.sglang_power.alpha"),
    ],
)
def test_parameters_that_would_be_lost_are_refused_by_name(
    params: Json, body: Json | None, field: str
) -> None:
    with pytest.raises(RequestError, match="none is named") as error:
        asked(params, body)
    assert error.value.field == field


def test_parameters_without_a_sampler_act_on_the_servers_default() -> None:
    assert values({"custom_params": {"alpha": 2.0}}, default="chat") == {"preset": "chat", "alpha": 2.0}
    assert values({}, {"strict": True}, "chat", CHAT) == {"preset": "chat", "strict": True}
    assert values({"custom_params": {"seed": 5, "mine": 1}}, default="chat") == {"preset": "chat", "seed": 5}
    assert asked({"custom_params": {"seed": 5}}) is None, "as SGLang, which reads no seed there"


# --- contradictions ---


def carried(value: object, **body: Any) -> Json:
    """A chat body with `metadata.sglang_power`."""
    return {"messages": [], "metadata": {"sglang_power": value}, **body}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("{'sampler': 'power'}", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("", "not valid JSON"),
        ('"power"', "not a JSON object"),
        ("[]", "not a JSON object"),
        (["power"], "not a JSON object"),
        (True, "not a JSON object"),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.parametrize("place", ["metadata.sglang_power", "sglang_power", "custom_params.sglang_power"])
def test_a_place_that_is_ours_and_cannot_be_read_is_refused_by_name(
    place: str, value: object, problem: str
) -> None:
    holder, _, name = place.rpartition(".")
    body = {holder: {name: value}} if holder else {name: value}
    with pytest.raises(RequestError, match=problem) as error:
        asked({}, body, "chat", RESPONSES)
    assert error.value.field == place
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("params", "body", "field", "other"),
    [
        ({"custom_params": {"sampler": "power"}, "sampler": "cot"}, {}, "sampling_params.sampler", "power"),
        (
            {"custom_params": {"sampler": "cot"}},
            carried('{"sampler": "power"}'),
            "metadata.sglang_power.sampler",
            "custom_params.sampler='cot'",
        ),
        (
            {"custom_params": {"sampler": "power", "alpha": 4}},
            {"alpha": 2},
            "alpha",
            "custom_params.alpha=4",
        ),
        (
            {},
            carried('{"sampler": "power"}', sampler="cot"),
            "sampler",
            "metadata.sglang_power.sampler='power'",
        ),
        ({}, carried('{"preset": "a"}', preset="b"), "preset", "metadata.sglang_power.preset='a'"),
        (
            {"sampler": "none"},
            carried({"sampler": "power"}),
            "sampling_params.sampler",
            "metadata.sglang_power.sampler='power'",
        ),
    ],
)
def test_a_contradiction_names_both_places(params: Json, body: Json, field: str, other: str) -> None:
    with pytest.raises(RequestError, match=f"contradicts .*{re.escape(other)}") as error:
        asked(params, body)
    assert error.value.field == field


def test_truncation_that_contradicts_metadata_names_both_places() -> None:
    body = Body.at(CHAT, carried('{"sampler": "power", "top_p": 0.5}', top_p=0.9))
    found = intake.asked(Written({}, body), None)
    assert found is not None
    with pytest.raises(RequestError, match=r"top_p=0\.9: contradicts metadata\.sglang_power\.top_p=0\.5"):
        intake.resolve(found, ServerConfig(), body.named({}), "m")


def test_a_default_preset_is_not_explicit_and_none_opts_out() -> None:
    assert asked({}, None, "chat") == Asked({"preset": "chat"}, explicit=False)
    assert asked({"sampler": NO_SAMPLER}, None, "chat") is None
    assert asked({}, carried('{"sampler": "none"}'), "chat", CHAT) is None


# --- what the client named of SGLang's own fields ---

FILLED = {"temperature": 0.7, "top_p": 0.5, "top_k": 20, "repetition_penalty": 1.1}
"""As SGLang fills them in from a model's generation config."""

SAID = {"temperature": 0.4, "seed": 3}


@pytest.mark.parametrize(
    ("path", "params", "body", "named"),
    [
        (CHAT, {**FILLED, "temperature": 0.4}, {"messages": [], **SAID, "top_p": None}, SAID),
        (COMPLETIONS, {**FILLED, "temperature": 0.4}, {"prompt": "", **SAID}, SAID),
        ("/invocations", {**FILLED, "temperature": 0.4}, {"messages": [], **SAID}, SAID),
        (RESPONSES, {**FILLED, "temperature": 0.4}, {"input": "x", "text": {}, **SAID}, SAID),
        (RESPONSES, FILLED, {"input": "x", "text": {"format": {"type": "text"}}}, {}),
        (MESSAGES, {**FILLED, "temperature": 0.4}, {"messages": [], **SAID}, SAID),
        (CHAT, FILLED, {"messages": [], "input_ids": [1, 2]}, {}),
        (GENERATE, SAID, {"text": "x", "sampling_params": SAID}, SAID),
        (VERTEX, SAID, {"instances": [{"text": "x"}], "parameters": {"sampling_params": SAID}}, SAID),
        (OLLAMA, {**SAID, "max_new_tokens": 2048}, {"messages": [], "options": SAID}, SAID),
        ("/elsewhere", SAID, {"whatever": 1}, SAID),
    ],
)
def test_what_counts_is_what_the_body_names(path: str, params: Json, body: Json, named: Json) -> None:
    found = Body.at(path, body).named(params)
    assert {key: found[key] for key in (*FILLED, "seed") if key in found} == named


def test_ollamas_names_become_sglangs() -> None:
    options = {"repeat_penalty": 1.2, "min_p": 0.1, "num_predict": 5, "temperature": None, "stop": ["a"]}
    body = Body.at("/api/generate", {"prompt": "", "options": options})
    assert body.named({}) == {"repetition_penalty": 1.2, "min_p": 0.1, "stop": ["a"]}
    assert Body.at("/api/generate", {"prompt": "", "options": "none"}).named({}) == {}


def test_the_routes_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang_power.sglang_host.tokenizer.body import routes

    monkeypatch.setenv("AIP_PREDICT_ROUTE", "/predict")
    monkeypatch.setenv("SGLANG_OLLAMA_CHAT_ROUTE", "/ollama")
    routes.cache_clear()
    try:
        assert Body.at("/ollama", {"options": {"top_k": 2}}).named({"top_k": 9}) == {"top_k": 2}
        assert Body.at("/predict", {"top_k": 2}).named({"top_k": 9}) == {"top_k": 9}
    finally:
        monkeypatch.undo()
        routes.cache_clear()


@pytest.mark.parametrize(
    ("root", "url", "values"),
    [
        ("", CHAT, {"messages": []}),
        ("/behind/a/proxy", "/behind/a/proxy" + CHAT, {"messages": []}),
    ],
)
def test_a_body_knows_its_route(root: str, url: str, values: Json) -> None:
    class Url:
        path = url

    class Request:
        scope = {"root_path": root}  # noqa: RUF012
        _body = json.dumps(values).encode()

    Request.url = Url()  # type: ignore[attr-defined]
    assert body_of(Request()) == Body.at(CHAT, values)
    assert body_of(Request()).route.fields == "top_level"


def test_requests_without_a_body() -> None:
    class Grpc:
        """No URL, no JSON."""

    class Broken(Grpc):
        _body = b"{"

    for request in (None, Grpc(), Broken()):
        assert body_of(request) is NO_BODY
    assert NO_BODY.named({"top_p": 0.5, "top_k": None}) == {"top_p": 0.5}


def test_model_defaults_are_neutralised() -> None:
    named = Body.at(CHAT, {"messages": [], "top_p": 0.5}).named(FILLED)
    assert intake.neutralised(FILLED, named) == ["repetition_penalty", "temperature", "top_k"]


# --- what a client chose, so that no experiment may ---


@pytest.mark.parametrize(
    ("path", "params", "body", "choice"),
    [
        (CHAT, {"temperature": 0.0}, {"messages": [], "temperature": 0}, "greedy"),
        (CHAT, {"temperature": 0.0, "top_k": 1}, {"messages": []}, None),
        (RESPONSES, {"top_k": 1}, {"input": "x", "top_k": 1}, "greedy"),
        (OLLAMA, {"temperature": 0}, {"messages": [], "options": {"temperature": 0}}, "greedy"),
        (GENERATE, {"temperature": 0}, {"text": "x"}, "greedy"),
        (GENERATE, {"top_k": 1}, {"text": "x"}, "greedy"),
        (GENERATE, {"temperature": 0.3}, {"text": "x"}, None),
        (CHAT, {"sampling_seed": 3}, {"messages": [], "seed": 3}, "seed"),
        (GENERATE, {"sampling_seed": 3}, {"text": "x"}, "seed"),
        (GENERATE, {"custom_params": {"seed": 3}}, {"text": "x"}, "seed"),
        (OLLAMA, {}, {"messages": [], "options": {"seed": 3}}, "seed"),
        (GENERATE, {"custom_params": {"sampler": "none"}}, {"text": "x"}, "own_sampler"),
        (GENERATE, {}, {"text": "x", "preset": "y"}, "own_sampler"),
        (CHAT, {}, carried('{"sampler": "none"}'), "own_sampler"),
        (CHAT, {}, carried("{}"), None),
        (GENERATE, {"custom_params": {"mine": 3}}, {"text": "x"}, None),
    ],
)
def test_how_a_client_chose_to_sample(path: str, params: Json, body: Json, choice: str | None) -> None:
    obj = GenerateReqInput(text="hi", sampling_params=params)
    assert intake.own_choice(obj, Body.at(path, body)) == choice


def test_a_processors_parameters_are_no_choice_of_a_sampler() -> None:
    custom = {"sampler": "theirs", "seed": 3}
    obj = GenerateReqInput(
        text="hi", sampling_params={"custom_params": custom}, custom_logit_processor="code"
    )
    assert intake.own_choice(obj, NO_BODY) is None


def test_lists_are_batches() -> None:
    for obj in (
        GenerateReqInput(text=["a", "b"], sampling_params={}),
        GenerateReqInput(text=["a"], sampling_params=[{}]),
        GenerateReqInput(input_ids=[[1], [2]]),
    ):
        assert intake.own_choice(obj, NO_BODY) == "batch"


def test_sglangs_parameters_lose_ours_only() -> None:
    params = {
        "sampler": "power",
        "alpha": 2.0,
        "strict": True,
        "seed": 3,
        "n": 2,
        "stop": ["x"],
        "top_p": 0.5,
    }
    assert without_own(params) == {"n": 2, "stop": ["x"], "top_p": 0.5}
    absent = {"sampler": None, "alpha": None, "beta": 1, "steps": 2, "seed": 3}
    assert without_own(absent, nulls_only=True) == {"beta": 1, "steps": 2, "seed": 3}
    chat = ChatCompletionRequest(messages=[]).to_sampling_params(stop=[], model_generation_config={})
    assert without_own(chat) == chat, "nothing that SGLang itself sends"
