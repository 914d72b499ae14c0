"""Temperatures beside samplers with a law of their own, and prompts that no default fits. No server."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import yaml
from enrolled_runs import ABORT, STOP, StubService, answer, drained, experiment, replay, run_of
from letters import Letters
from prometheus_client import REGISTRY
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang_power.errors import RequestError
from sglang_power.request import OwnLawRequest, PerfectRequest, PowerRequest, parse_request, samplers
from sglang_power.samplers.fallback import Fallback, FallbackReason
from sglang_power.server import metrics
from sglang_power.server.config import Limits, ServerConfig, load_config
from sglang_power.sglang_host.tokenizer import fallback_log
from sglang_power.sglang_host.tokenizer.answer_plan import AnswerPlan
from sglang_power.sglang_host.tokenizer.body import NO_BODY, Body
from sglang_power.sglang_host.tokenizer.host import Host
from sglang_power.sglang_host.tokenizer.orchestrator import respond
from sglang_power.sglang_host.tokenizer.plan import PlainPlan, Plan, plan_arm, plan_request

Json = dict[str, Any]

CONFIGS = Path(__file__).parents[3] / "configs"
CHAT = "/v1/chat/completions"

OWN_LAW = {"power", "smc", "perfect", "lookahead"}


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


def config(limits: Limits | None = None, **preset: Any) -> ServerConfig:
    """A server with a default of `power`."""
    values = {"sampler": "power", "alpha": 4.0, **preset}
    return ServerConfig(presets={"p": values}, defaults={"*": "p"}, limits=limits or Limits())


def planned(
    params: Json, settings: ServerConfig, host: Any = None, body: Body = NO_BODY, **fields: Any
) -> Plan:
    """The plan of one prompt."""
    obj = GenerateReqInput(text="a", sampling_params={"max_new_tokens": 16, **params}, **fields)
    (plan,) = plan_request(host or manager(), obj, body, settings)
    return plan


def asked(custom: Json, settings: ServerConfig | None = None, **params: Any) -> AnswerPlan:
    """The plan of an explicit request for power."""
    params = {"custom_params": {"sampler": "power", **custom}, **params}
    plan = planned(params, settings or ServerConfig())
    assert isinstance(plan, AnswerPlan)
    return plan


# --- explicit requests ---


@pytest.mark.parametrize("temperature", [0, 0.0, 1e-9, 0.7, 2.0])
def test_a_temperature_is_refused_and_the_message_names_the_way_out(temperature: float) -> None:
    with pytest.raises(RequestError, match="on_temperature") as error:
        asked({"proposal_temperature": 0.5}, temperature=temperature)
    assert (error.value.field, error.value.value) == ("temperature", temperature)
    assert "proposal_temperature" not in str(error.value)
    assert asked({}, temperature=1).neutralised == asked({}, temperature=1.0).neutralised == []


@pytest.mark.parametrize("temperature", [0, 1e-9, 0.7, 2.0])
def test_ignore_says_what_it_does_not_apply(temperature: float) -> None:
    plan = asked({"on_temperature": "ignore"}, temperature=temperature)
    assert plan.request.alpha == 4.0
    assert plan.neutralised == ["temperature"]
    assert asked({"on_temperature": "ignore"}, temperature=1).neutralised == []


@pytest.mark.parametrize(("temperature", "alpha"), [(0.5, 2.0), (0.1, 10.0), (1, 1.0), (0.7, 1 / 0.7)])
def test_alpha_is_one_over_the_temperature(temperature: float, alpha: float) -> None:
    plan = asked({"on_temperature": "alpha"}, temperature=temperature)
    assert plan.request.alpha == alpha
    assert plan.request.echo(16)["alpha"] == alpha
    assert plan.neutralised == []
    assert asked({"on_temperature": "alpha"}).request.alpha == 4.0, "no temperature, nothing to be made of it"


@pytest.mark.parametrize("temperature", [0, 1.5, -1.0, float("nan"), float("inf"), "0.5", True])
def test_alpha_takes_temperatures_in_zero_to_one(temperature: object) -> None:
    with pytest.raises(RequestError) as error:
        asked({"on_temperature": "alpha"}, temperature=temperature)
    assert error.value.field == "temperature"


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf"), "0.5", True])
def test_what_is_no_temperature_is_not_ignored(temperature: object) -> None:
    with pytest.raises(RequestError, match="finite number") as error:
        asked({"on_temperature": "ignore"}, temperature=temperature)
    assert error.value.field == "temperature"


def test_only_the_clients_own_alpha_contradicts_the_temperature() -> None:
    settings = config(alpha=3.0, on_temperature="alpha", proposal_temperature=0.5)
    named = {"preset": "p", "on_temperature": "alpha"}
    plan = planned({"custom_params": named, "temperature": 0.5}, settings)
    assert isinstance(plan, AnswerPlan)
    assert (plan.request.alpha, plan.request.tau) == (2.0, 0.5)
    same = asked({"alpha": 2.0, "on_temperature": "alpha"}, temperature=0.5)
    assert same.request.alpha == 2.0
    with pytest.raises(RequestError, match=r"alpha=4\.0 is named"):
        asked({"alpha": 4.0, "on_temperature": "alpha"}, temperature=0.5)


def test_an_alpha_out_of_bounds_is_told_as_a_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: ServerConfig, values: Json, _model: str) -> Any:
        raise RequestError("alpha", values["alpha"], "too large", "Leave it out")

    monkeypatch.setattr(ServerConfig, "resolve", refuse)
    with pytest.raises(RequestError, match="too large") as error:
        asked({"on_temperature": "alpha"}, temperature=0.5)
    assert (error.value.field, error.value.value) == ("temperature", 0.5)
    with pytest.raises(RequestError) as error:
        asked({"alpha": 2.0})
    assert error.value.field == "alpha"


def test_samplers_without_an_alpha_refuse_to_make_one() -> None:
    class Other(OwnLawRequest):
        pass

    assert Other(on_temperature="ignore").on_temperature == "ignore"
    with pytest.raises(ValueError, match="no alpha"):
        Other(on_temperature="alpha")


def test_samplers_with_a_law_of_their_own_are_known() -> None:
    """A sampler that is in neither of the two lists has not decided what a temperature means."""
    assert {name for name, model in samplers().items() if issubclass(model, OwnLawRequest)} == OWN_LAW


@pytest.mark.parametrize("name", sorted(OWN_LAW))
def test_samplers_with_a_law_of_their_own_say_what_a_temperature_means(name: str) -> None:
    def ask(**params: Any) -> AnswerPlan:
        custom = {"sampler": name, "particles": 2} if name == "smc" else {"sampler": name}
        plan = planned({"custom_params": {**custom, **params}, "temperature": 0.5}, ServerConfig())
        assert isinstance(plan, AnswerPlan)
        return plan

    with pytest.raises(RequestError, match="on_temperature"):
        ask()
    assert ask(on_temperature="ignore").neutralised == ["temperature"]
    assert ask(on_temperature="alpha").request.alpha == 2.0


@pytest.mark.parametrize("name", sorted(samplers().keys() - OWN_LAW))
def test_samplers_that_take_the_temperature_have_no_such_field(name: str) -> None:
    with pytest.raises(RequestError):
        parse_request({"sampler": name, "on_temperature": "ignore"})


@pytest.mark.parametrize("inside", ["power", "perfect"])
@pytest.mark.parametrize("sampler", ["vote", "best_of"])
def test_a_base_with_a_law_of_its_own_says_what_a_temperature_means(sampler: str, inside: str) -> None:
    def ask(**base: Any) -> AnswerPlan:
        custom = {"sampler": sampler, "samples": 2, "base": {"sampler": inside, **base}}
        plan = planned({"custom_params": custom, "temperature": 0.5}, ServerConfig())
        assert isinstance(plan, AnswerPlan)
        return plan

    with pytest.raises(RequestError, match=r"base\.on_temperature"):
        ask()
    assert ask(on_temperature="ignore").neutralised == ["temperature"]
    base = ask(on_temperature="alpha").request.base
    assert isinstance(base, PowerRequest | PerfectRequest)
    assert base.alpha == 2.0


# --- defaults ---

LONG = {"max_new_tokens": 800}
FALLBACKS: list[tuple[FallbackReason, Json, Json, Json]] = [
    ("greedy", {"temperature": 0}, {}, {}),
    ("greedy", {"temperature": 0}, {}, {"on_temperature": "ignore"}),
    ("greedy", {"top_k": 1}, {}, {"on_temperature": "ignore"}),
    ("temperature", {"temperature": 0.7}, {}, {}),
    ("temperature", {"temperature": 1.5}, {}, {"on_temperature": "alpha"}),
    ("unsupported_field", {"stop_regex": "a"}, {}, {}),
    ("limits", LONG, {}, {}),
    ("limits", {"max_new_tokens": 2000}, {}, {}),
    ("limits", {"n": 99}, {}, {}),
    ("parameters", {"top_p": 0.5}, {}, {"reward": "nobody's"}),
    ("scoring", {}, {"return_logprob": True, "logprob_start_len": 0}, {}),
    ("short", {"max_new_tokens": 1}, {}, {}),
    ("short", {"max_new_tokens": 0}, {}, {}),
]


@pytest.mark.parametrize(("reason", "params", "fields", "preset"), FALLBACKS)
def test_a_prompt_that_a_default_does_not_fit_runs_plain_for_a_reason(
    reason: FallbackReason, params: Json, fields: Json, preset: Json
) -> None:
    plan = planned(params, config(Limits(max_horizon=512), **preset), **fields)
    assert isinstance(plan, PlainPlan)
    assert plan.fallback is not None
    assert plan.fallback.reason == reason
    assert "=" in plan.fallback.message


def test_a_server_that_rules_the_sampler_out_is_a_reason() -> None:
    plan = planned({}, config(), manager(tp_size=2))
    assert isinstance(plan, PlainPlan)
    assert plan.fallback is not None
    assert plan.fallback.reason == "server"


def test_every_reason_is_met() -> None:
    assert {reason for reason, *_ in FALLBACKS} | {"server"} == set(get_args(FallbackReason))


@pytest.mark.parametrize(("reason", "params", "fields", "preset"), FALLBACKS)
@pytest.mark.parametrize("who", ["preset", "request"])
def test_strict_makes_an_error_of_it(
    reason: FallbackReason, params: Json, fields: Json, preset: Json, who: str
) -> None:
    """Scoring and one token are not what a preset is for; a request that says strict is explicit."""
    if who == "request":
        params = {**params, "custom_params": {"strict": True}}
    settings = config(Limits(max_horizon=512), **preset, **({"strict": True} if who == "preset" else {}))
    if who == "preset" and reason in ("scoring", "short"):
        plan = planned(params, settings, **fields)
        assert isinstance(plan, PlainPlan)
        assert plan.fallback is not None
    elif who == "request" and (reason == "scoring" or params.get("max_new_tokens") == 1 or "top_k" in params):
        assert isinstance(planned(params, settings, **fields), AnswerPlan), "it can be served, so it is"
    elif who == "request" and reason == "greedy" and preset:
        plan = planned(params, settings, **fields)
        assert isinstance(plan, AnswerPlan), "the client asked for the default, which ignores temperatures"
        assert plan.neutralised == ["temperature"]
    else:
        with pytest.raises(RequestError) as error:
            planned(params, settings, **fields)
        assert ("'p' is strict" in str(error.value)) == (who == "preset")


def test_strict_is_true_or_false() -> None:
    for wrong in ("yes", 1, [True]):
        with pytest.raises(RequestError, match="strict="):
            asked({"strict": wrong})
    assert asked({"strict": False}).request == asked({"strict": True}).request == asked({}).request


def test_a_default_ignores_temperatures_where_its_preset_says_so() -> None:
    plan = planned({"temperature": 0.7}, config(on_temperature="ignore"))
    assert isinstance(plan, AnswerPlan)
    assert (plan.request.alpha, plan.neutralised) == (4.0, ["temperature"])
    made = planned({"temperature": 0.5}, config(on_temperature="alpha", alpha=3.0))
    assert isinstance(made, AnswerPlan)
    assert made.request.alpha == 2.0


def test_only_the_body_makes_a_request_greedy() -> None:
    """A model whose generation config says so gets its default all the same."""
    filled, body = {"temperature": 0.0, "top_k": 1}, Body.at(CHAT, {"messages": []})
    plan = planned(filled, config(), body=body)
    assert isinstance(plan, AnswerPlan)
    assert plan.neutralised == ["temperature", "top_k"]


def test_health_checks_and_children_are_never_touched() -> None:
    for fields in ({"rid": "HEALTH_CHECK_1"}, {"log_metrics": False}):
        plan = planned({"max_new_tokens": 1, "temperature": 0}, config(strict=True), **fields)
        assert plan == PlainPlan()


def test_lists_fall_back_prompt_by_prompt() -> None:
    params = [{"max_new_tokens": 16}, {"max_new_tokens": 16, "temperature": 0}, {"max_new_tokens": 1}]
    obj = GenerateReqInput(text=["a", "b", "c"], sampling_params=params)
    first, *rest = plan_request(manager(), obj, NO_BODY, config())
    assert isinstance(first, AnswerPlan)
    assert [plan.fallback.reason for plan in rest] == ["greedy", "short"]  # type: ignore[union-attr]


def power_presets() -> list[tuple[str, str, Json]]:
    found = []
    for path in sorted(CONFIGS.glob("*.yaml")):
        for name, values in yaml.safe_load(path.read_text()).get("presets", {}).items():
            if values["sampler"] == "power":
                found.append((path.name, name, values))
    return found


@pytest.mark.parametrize(("file", "name", "values"), power_presets())
def test_the_shipped_presets_ignore_temperatures(file: str, name: str, values: Json) -> None:
    assert values["on_temperature"] == "ignore", f"{file}: {name}"


def test_the_shipped_default_serves_what_common_clients_send() -> None:
    """LangChain sends 0.7; lm-eval, dspy and litellm send 0, which stays greedy."""
    shipped = load_config(CONFIGS / "chat.yaml")
    assert isinstance(planned({"temperature": 0.7}, shipped), AnswerPlan)
    greedy = planned({"temperature": 0}, shipped)
    assert isinstance(greedy, PlainPlan)
    assert greedy.fallback is not None
    assert greedy.fallback.reason == "greedy"


# --- arms ---


def test_an_arm_may_ignore_temperatures() -> None:
    obj = GenerateReqInput(text="a", sampling_params={"max_new_tokens": 16, "temperature": 0.7})
    arm = {"sampler": "power", "alpha": 2.0}
    with pytest.raises(RequestError):
        plan_arm(manager(), obj, NO_BODY, ServerConfig(), arm)
    plan = plan_arm(manager(), obj, NO_BODY, ServerConfig(), {**arm, "on_temperature": "ignore"})
    assert isinstance(plan, AnswerPlan)
    assert plan.neutralised == ["temperature"]


@pytest.mark.parametrize("strict", [False, True])
async def test_a_strict_arm_that_fails_fails(strict: bool) -> None:
    """Without strict the server's default answers for it."""
    service = StubService()
    each = experiment("default_sampler")
    arms = [arm.model_copy(update={"sampler": {**arm.sampler, "strict": strict}}) for arm in each.arms]
    run = run_of(
        service,
        failing_once(),
        sampler={"sampler": "top_n_sigma"},
        each=each.model_copy(update={"arms": tuple(arms)}),
    )
    if strict:
        with pytest.raises(ValueError, match="nobody foresaw"):
            await drained(service, run)
    else:
        assert [response["text"] for response in await drained(service, run)] == ["plain"]
    assert [line.outcome for line in service.lines] == ["error" if strict else "fallback"]


def failing_once() -> Any:
    """A host that fails with its first request."""
    calls: list[object] = []

    async def original(*call: object) -> AsyncIterator[Json]:
        calls.append(call)
        if len(calls) == 1:
            raise ValueError("what nobody foresaw")
        yield answer("plain", STOP)

    return original


# --- what is told ---


async def told(plans: Sequence[Plan], *responses: Any, **fields: Any) -> list[Any]:
    """Responses of a host that answers `responses`."""
    obj = GenerateReqInput(**{"text": "a", "sampling_params": {}, **fields})
    host = Host(manager(), replay(*responses), obj, None, ServerConfig())
    return [response async for response in respond(host, plans)]


def reports(response: Any) -> list[Any]:
    answers = response if isinstance(response, list) else [response]
    return [(one["meta_info"].get("power") or {}).get("fallback") for one in answers]


GREEDY, SHORT = PlainPlan(Fallback("greedy", "temperature=0")), PlainPlan(Fallback("short", "n=1"))


async def test_answers_say_why_they_are_plain() -> None:
    (response,) = await told([GREEDY], answer("x", STOP))
    assert response["meta_info"]["power"]["sampler"] == "none"
    assert response["meta_info"]["power"]["fallback_reason"] == "temperature=0"
    assert reports(response) == ["greedy"]


async def test_each_prompt_of_a_list_has_its_own_reason() -> None:
    plans = [GREEDY, PlainPlan(), SHORT]
    two = [{"n": 2}] * 3
    (response,) = await told(
        plans, [answer(str(i), STOP) for i in range(6)], text=["a", "b", "c"], sampling_params=two
    )
    assert reports(response) == ["greedy"] * 2 + [None] * 2 + ["short"] * 2
    chunks = [answer("x", STOP, index=index) for index in (5, 0, 3)]
    found = await told(plans, *chunks, text=["a", "b", "c"], sampling_params=two, stream=True)
    assert [reports(chunk) for chunk in found] == [["short"], ["greedy"], [None]]
    (same,) = await told([GREEDY], [answer("x", ABORT)] * 2, text=["a", "b"])
    assert reports(same) == ["greedy", "greedy"], "one set of parameters for all prompts"


def fallbacks(reason: str) -> float:
    return REGISTRY.get_sample_value("sglang_power_fallbacks_total", {"reason": reason}) or 0.0


async def test_fallbacks_are_counted_where_they_run() -> None:
    metrics.declare_fallbacks(get_args(FallbackReason), enabled=True)
    before = {reason: fallbacks(reason) for reason in get_args(FallbackReason)}
    host = manager()
    host.enable_metrics = True
    obj = GenerateReqInput(text=["a"] * 4, sampling_params={})
    answers = [answer("x", STOP)] * 4
    for counted in (True, False):
        host.enable_metrics = counted
        plans = [GREEDY, PlainPlan(), SHORT, GREEDY]
        [_ async for _ in respond(Host(host, replay(answers), obj, None, ServerConfig()), plans)]
    change = {reason: fallbacks(reason) - count for reason, count in before.items()}
    assert {reason: count for reason, count in change.items() if count} == {"greedy": 2, "short": 1}
    assert REGISTRY.get_sample_value("sglang_power_fallbacks_total", {"reason": "server"}) is not None


def test_the_first_of_each_reason_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fallback_log, "_told", set())
    with caplog.at_level(logging.INFO, "sglang_power"):
        for message in ("first", "second"):
            fallback_log.count(Fallback("greedy", message), metrics_enabled=False)
            fallback_log.count(Fallback("short", message), metrics_enabled=False)
    assert "first" in caplog.text
    assert "second" not in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.INFO]
