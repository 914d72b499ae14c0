"""Requests that cannot be served: HTTP 400 that names field, value and remedy, before any token.

One table; every row goes through /generate with and without a stream, and where OpenAI's body can say it,
through completions and chat with and without a stream.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import pytest

from integration_tests.helpers.clients import (
    HTTP,
    MESSAGES,
    PROMPT,
    QUICK,
    client,
    generate,
    post,
    power_of,
    raw_generate,
    scheduled,
)
from integration_tests.server import Server

pytestmark = pytest.mark.server


@dataclass(frozen=True)
class Bad:
    """One mistake.

    Args:
        name: field that the message must begin with.
        value: how the message must show the value.
        remedy: a word of the remedy.
        power: flat parameters, on top of `base`.
        sampling: SGLang's own sampling parameters of /generate.
        body: further fields of the body of /generate.
        openai: fields of an OpenAI body that say the same, besides custom_params; None if none can.
        chat_only: only chat completions have these fields.
        base: flat parameters of a right request.
    """

    name: str
    value: str
    remedy: str
    power: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)
    openai: dict[str, Any] | None = field(default_factory=dict)
    chat_only: bool = False
    base: dict[str, Any] = field(default_factory=lambda: QUICK)

    def __str__(self) -> str:
        sampler = self.base.get("sampler")
        return f"{'' if sampler == 'power' else f'{sampler}-'}{self.name}={self.value}"


def power(name: str, value: Any, remedy: str, shown: str | None = None, **others: Any) -> Bad:
    """A wrong parameter of the sampler."""
    return Bad(name, repr(value) if shown is None else shown, remedy, {name: value, **others})


PARAMETERS = [
    power("sampler", "powr", "Use one of: power, "),
    power("sampler", "_power_child", "Use one of: power, "),
    power("sampler", 7, "Use one of: power, "),
    power("alhpa", 3.0, "Known parameters"),
    power("preset", "nope", "short"),
    power("alpha", 0.99, "4.0"),
    power("alpha", -1, "4.0"),
    power("alpha", "4", "4.0"),
    power("alpha", True, "4.0"),
    power("alpha", [4.0], "4.0"),
    power("proposal_temperature", 0, "1/alpha"),
    power("block_size", 0, "192"),
    power("block_size", 16.5, "192"),
    power("block_size", True, "192"),
    power("steps", 0, "10"),
    power("steps", -3, "10"),
    power("cut", "middle", "uniform"),
    power("cut_beta", 0, "4.0"),
    power("cut_epsilon", 0, "0.1"),
    power("cut_epsilon", 1.5, "0.1"),
    power("schedule", "fast", "exact"),
    power("early_rejection", "yes", "True"),
    power("seed", -1, "Leave it out"),
    power("seed", 2**64, "Leave it out", shown="1"),
    power("seed", 1.5, "Leave it out"),
    power("initial_text", "", "Leave it out"),
    power("initial_text", 5, "Leave it out"),
    power("initial_ids", [], "Leave it out"),
    power("initial_ids", "105", "Leave it out"),
    power("max_steps", 0, "Leave it out"),
    power("max_total_tokens", 0, "Leave it out"),
    power("deadline_ms", 0, "Leave it out"),
    power("deadline_ms", 0.5, "Leave it out"),
    power("lookback_blocks", 0, "Leave it out"),
    power("lookback_blocks", 1, "schedule", schedule="paper"),
    power("lookback_blocks", 1, "draft", initial_text="g"),
    power("top_p", 0, "Leave it out"),
    power("top_p", 1.1, "Leave it out"),
    power("top_k", 0, "-1"),
    power("top_k", -2, "Leave it out"),
    power("min_p", 2.0, "Leave it out"),
    power("return_trace", 1, "Leave it out"),
]

VOTE_OF_CHAINS = {"sampler": "vote", "base": {"sampler": "power"}}

BUDGETS_AND_DRAFTS = [
    power("max_total_tokens", 47, "max_new_tokens"),
    power("max_total_tokens", 10**9, "Lower"),
    power("initial_ids", [105], "one of the two", initial_text="g"),
    power("initial_ids", [105, 300], "token ids", shown="300"),
    Bad("initial_ids.1", "-5", "", {"initial_ids": [105, -5]}),
    Bad("initial_ids.0", "'g'", "", {"initial_ids": ["g"]}),
    power("initial_ids", [105] * 49, "Shorten", shown="[105, 105"),
    power("initial_text", "g4;" * 17, "Shorten"),
    power("initial_ids", [105, 0, 105], "first stop"),
    Bad(
        "initial_text",
        "'g4;A4.'",
        "first stop",
        {"initial_text": "g4;A4."},
        sampling={"stop": ["4;"]},
        openai={"stop": ["4;"]},
    ),
    Bad("max_new_tokens", "129", "max_horizon", {}, {"max_new_tokens": 129}, openai={"max_tokens": 129}),
    Bad("n", "17", "fewer", {}, {"n": 17}, openai={"n": 17}),
    Bad("temperature", "0.7", "on_temperature", {}, {"temperature": 0.7}, openai={"temperature": 0.7}),
    Bad("top_p", "0.5", "one place", {"top_p": 0.9}, {"top_p": 0.5}, openai={"top_p": 0.5}),
    *[
        Bad(field, str(value), remedy, {}, {field: value}, openai={field: value}, base=VOTE_OF_CHAINS)
        for field, value, remedy in (
            ("temperature", 0.7, "base.on_temperature"),
            ("top_p", 0.5, "base.top_p"),
        )
    ],
]

UNSUPPORTED = [
    Bad("stop_regex", "'A.'", "out", {}, {"stop_regex": "A."}, openai={"stop_regex": "A."}),
    Bad(
        "lora_path",
        "'adapter'",
        "out",
        body={"lora_path": "adapter"},
        openai={"lora_path": "adapter"},
    ),
    Bad("session_params", "{'id': 's'}", "out", body={"session_params": {"id": "s"}}, openai=None),
    Bad(
        "image_data",
        "'http://127.0.0.1/x.png'",
        "out",
        body={"image_data": "http://127.0.0.1/x.png"},
        openai=None,
    ),
    Bad("audio_data", "'x.wav'", "out", body={"audio_data": "x.wav"}, openai=None),
    Bad("video_data", "'x.mp4'", "out", body={"video_data": "x.mp4"}, openai=None),
    Bad(
        "custom_logit_processor",
        "'{}'",
        "out",
        body={"custom_logit_processor": "{}"},
        openai={"custom_logit_processor": "{}"},
    ),
    Bad(
        "return_hidden_states",
        "True",
        "out",
        body={"return_hidden_states": True},
        openai={"return_hidden_states": True},
    ),
]

POLICY_BASES: dict[str, dict[str, Any]] = {
    "entropix": {"entropy_threshold": 1.0, "varentropy_threshold": 1.0},
    "kl_guided": {"prompt_without": "R"},
}


def policy(sampler: str, name: str, value: Any, remedy: str, shown: str | None = None, **others: Any) -> Bad:
    """A wrong parameter of a per-step policy; None leaves it out."""
    base = {"sampler": sampler, **POLICY_BASES.get(sampler, {}), **others}
    without = {key: kept for key, kept in base.items() if key != name}
    given = {} if value is None else {name: value}
    return Bad(name, repr(value) if shown is None else shown, remedy, given, base=without)


POLICIES = [
    policy("top_n_sigma", "sampler", "top_n_sigm", "top_n_sigma"),
    policy("top_n_sigma", "sampler", "_power_policy", "top_n_sigma"),
    policy("top_n_sigma", "sigma", 1.0, "Known parameters: n, sampler, seed"),
    policy("top_n_sigma", "alpha", 4.0, "Known parameters"),
    policy("top_n_sigma", "n", 0, "1.0"),
    policy("top_n_sigma", "n", -1.0, "1.0"),
    policy("top_n_sigma", "n", "1", "1.0"),
    policy("top_n_sigma", "n", True, "1.0"),
    policy("top_n_sigma", "seed", -1, "Leave it out"),
    policy("temperature", "value", 0.0, ""),
    policy("temperature", "value", None, "SGLANG_POWER_CONFIG"),
    policy("top_k", "k", 0, ""),
    policy("top_k", "k", 2.5, ""),
    policy("top_k", "k", 2**31, ""),
    policy("top_p", "p", 1.5, ""),
    policy("top_p", "p", 0, ""),
    policy("top_p", "p", None, "SGLANG_POWER_CONFIG"),
    policy("min_p", "p", -0.1, ""),
    policy("epsilon", "epsilon", 1.0, "0.0003"),
    policy("eta", "epsilon", 0, "0.0006"),
    policy("typical", "mass", 0, "0.9"),
    policy("typical", "mass", 0.5, "margin", one_sided=True),
    policy("typical", "margin", 0.5, "one_sided"),
    policy("typical", "one_sided", 1, "False"),
    policy("edt", "base", -0.8, "0.8"),
    policy("adapt", "hot", 0.4, "hot > cold"),
    policy("dynatemp", "t_min", 2.0, "t_min <= t_max"),
    policy("top_h", "alpha", 1.0, "0.4"),
    policy("p_less", "p", 0.5, "Known parameters: sampler, seed"),
    policy("min_k", "decay", -1, "1.0"),
    policy("top_a", "a", 2.0, "0.2"),
    policy("entropix", "entropy_threshold", None, "SGLANG_POWER_CONFIG"),
    policy("entropix", "varentropy_threshold", None, "SGLANG_POWER_CONFIG"),
    policy("entropix", "entropy_threshold", -1.0, ""),
    policy("entropix", "explore", "tree", "sample"),
    policy("entropix", "hot_factor", 1.0, "1.5"),
    policy("entropix", "insert_ids", [105, 258], "token ids", shown="258"),
    policy("kl_guided", "prompt_without", None, "ids_without"),
    policy("kl_guided", "prompt_without", "", "Leave it out"),
    policy("kl_guided", "prompt_without", "R" * 300, "Shorten"),
    policy("kl_guided", "prompt_without", "R" * 220, "max_new_tokens"),
    policy("kl_guided", "ids_without", [105], "one of the two"),
    policy("kl_guided", "sigma", 0, "1.0"),
    Bad(
        "ids_without",
        "300",
        "token ids",
        {"ids_without": [105, 300]},
        base={"sampler": "kl_guided"},
    ),
    *[
        Bad(
            "custom_logit_processor",
            "'{}'",
            "out",
            body={"custom_logit_processor": "{}"},
            openai={"custom_logit_processor": "{}"},
            base={"sampler": sampler, **POLICY_BASES.get(sampler, {})},
        )
        for sampler in ("top_n_sigma", "kl_guided")
    ],
    Bad(
        "regex",
        "'[gw]+'",
        "out",
        {},
        {"regex": "[gw]+"},
        openai={"regex": "[gw]+"},
        base={"sampler": "kl_guided", "prompt_without": "R"},
    ),
    Bad(
        "frequency_penalty",
        "0.5",
        "out",
        {},
        {"frequency_penalty": 0.5},
        openai={"frequency_penalty": 0.5},
        base={"sampler": "kl_guided", "prompt_without": "R"},
    ),
]


def proposal(name: str, value: Any, remedy: str, shown: str | None = None, **others: Any) -> Bad:
    """A wrong parameter of the policy in a power request's proposals."""
    shown = repr(value) if shown is None else shown
    return Bad(f"proposal_policy.{name}", shown, remedy, {"proposal_policy": {**others, name: value}})


PROPOSALS = [
    power("proposal_policy", "edt", ""),
    proposal("sampler", "nope", "top_n_sigma"),
    proposal("sampler", "power", "top_n_sigma"),
    proposal("sampler", "kl_guided", "sampler of its own", prompt_without="R"),
    proposal("sampler", "entropix", "sampler of its own", entropy_threshold=1.0, varentropy_threshold=1.0),
    proposal("theta", -1, "0.1", sampler="edt"),
    proposal("alpha", 4.0, "Known parameters", sampler="edt"),
    proposal("seed", 1, "beside", sampler="edt"),
]

EVERY = PARAMETERS + BUDGETS_AND_DRAFTS + UNSUPPORTED + POLICIES + PROPOSALS
BY_GENERATE = [bad for bad in EVERY if not bad.chat_only]
BY_OPENAI = [bad for bad in EVERY if bad.openai is not None]


def custom_params(bad: Bad) -> dict[str, Any]:
    """A right request with the mistake in it.

    Beside somebody's logit processor, whose custom_params are its own, in the object that is ours.
    """
    base = {} if "preset" in bad.power else bad.base
    whole = {**base, **bad.power}
    return {"sglang_power": whole} if bad.name == "custom_logit_processor" else whole


def check_message(message: str, bad: Bad) -> None:
    """Field, value and remedy."""
    assert message.startswith(f"{bad.name}={bad.value[:70]}"), message
    problem, _, hint = message.partition(": ")[2].partition(". ")
    assert problem, message
    assert bad.remedy in hint, message


@pytest.mark.parametrize("bad", BY_GENERATE, ids=str)
def test_generate_answers_400(pivot_server: Server, bad: Bad) -> None:
    before = scheduled(pivot_server)
    params = {"max_new_tokens": 48, "custom_params": custom_params(bad), **bad.sampling}
    for stream in (False, True):
        body = {"text": PROMPT, "sampling_params": params, "stream": stream, **bad.body}
        response = post(pivot_server, "/generate", body)
        assert response.status_code == httpx.codes.BAD_REQUEST, response.text
        error = response.json()["error"]
        check_message(error if isinstance(error, str) else error["message"], bad)
    assert scheduled(pivot_server) == before, "nothing reaches the scheduler"


def refusal(server: Server, door: str, extra: dict[str, Any]) -> Any:
    """The body of the error that the stock client raises."""
    with pytest.raises(openai.BadRequestError) as caught:
        ask(server, door, extra)
    return caught.value.body


def ask(server: Server, door: str, extra: dict[str, Any]) -> None:
    """A request through the stock client, with fields that it may not know."""
    if door == "completions":
        client(server).completions.create(model="pivot", prompt=PROMPT, extra_body=extra)
    else:
        client(server).chat.completions.create(model="pivot", messages=MESSAGES, extra_body=extra)


@pytest.mark.parametrize("bad", BY_OPENAI, ids=str)
def test_openai_clients_get_openai_errors(pivot_server: Server, bad: Bad) -> None:
    before = scheduled(pivot_server)
    extra = {"max_tokens": 48, **(bad.openai or {}), "custom_params": custom_params(bad)}
    for door in ("chat",) if bad.chat_only else ("completions", "chat"):
        for stream in (False, True):
            error = refusal(pivot_server, door, {**extra, "stream": stream})
            assert (error["object"], error["code"]) == ("error", 400)
            check_message(error["message"], bad)
    assert scheduled(pivot_server) == before, "nothing reaches the scheduler"


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_json_are_400(pivot_server: Server, path: str, number: str) -> None:
    """SGLang's own parser refuses them; through the Engine they reach the plugin (test_entry_points)."""
    before = scheduled(pivot_server)
    power = '{"sampler": "power", "alpha": ' + number + "}"
    if path == "/generate":
        content = '{"text": "R1+1:", "sampling_params": {"custom_params": ' + power + "}}"
    else:
        prompt = '"messages": [{"role": "user", "content": "R1+1:"}], "prompt": "R1+1:"'
        content = '{"model": "pivot", ' + prompt + ', "custom_params": ' + power + "}"
    headers = {"Content-Type": "application/json"}
    response = HTTP.post(pivot_server.url + path, content=content, headers=headers)
    assert response.status_code == httpx.codes.BAD_REQUEST
    assert scheduled(pivot_server) == before


@pytest.mark.parametrize(
    "sampling",
    [{"temperature": -1}, {"top_p": 2}, {"min_p": -1}, {"top_k": 0}, {"min_new_tokens": 49}],
    ids=str,
)
def test_sglangs_own_checks_hold_for_policies(pivot_server: Server, sampling: dict[str, Any]) -> None:
    """Also where SGLang sees only children with neutral parameters; a stream may carry SGLang's error."""
    for base in ({"sampler": "top_n_sigma"}, {"sampler": "kl_guided", "prompt_without": "R"}):
        for stream in (False, True):
            params = {"max_new_tokens": 48, **sampling, "custom_params": base}
            body = {"text": PROMPT, "sampling_params": params, "stream": stream}
            response = post(pivot_server, "/generate", body)
            assert f"{next(iter(sampling))} must be" in response.text
            assert '"code":400' in response.text or response.status_code == httpx.codes.BAD_REQUEST


def test_two_places_that_contradict_each_other(pivot_server: Server) -> None:
    body = {
        "text": PROMPT,
        "sampler": "power",
        "sampling_params": {"max_new_tokens": 8, "custom_params": {"sampler": "none"}},
    }
    response = post(pivot_server, "/generate", body)
    assert response.status_code == httpx.codes.BAD_REQUEST
    assert "sampler='power': contradicts" in response.text


def test_one_bad_prompt_refuses_the_whole_list(pivot_server: Server) -> None:
    """As SGLang does: a batch is one request."""
    before = scheduled(pivot_server)
    params = [{"max_new_tokens": 8}, {"max_new_tokens": 8, "custom_params": {**QUICK, "alpha": 0.1}}]
    for stream in (False, True):
        body = {"text": [PROMPT, PROMPT], "sampling_params": params, "stream": stream}
        response = post(pivot_server, "/generate", body)
        assert response.status_code == httpx.codes.BAD_REQUEST
        assert "alpha=0.1" in response.text
    assert scheduled(pivot_server) == before


def test_a_prompt_that_leaves_no_room(pivot_server: Server) -> None:
    """The context has 256 tokens: 200 of prompt leave no room for 100. Known once the prompt is tokenised."""
    params = {"max_new_tokens": 100, "custom_params": QUICK}
    body: dict[str, Any] = {"text": "R" + "1+" * 100, "sampling_params": params}
    response = post(pivot_server, "/generate", body)
    assert response.status_code == httpx.codes.BAD_REQUEST, response.text[:300]
    streamed = post(pivot_server, "/generate", {**body, "stream": True})
    for text in (response.text, streamed.text):
        assert "max_new_tokens=100: a prompt of 201 tokens leaves room for 53 in the context of 256" in text


def test_bad_requests_disturb_nobody(pivot_server: Server) -> None:
    """Plain and power requests that run meanwhile are answered as if they were alone."""
    alone = [
        raw_generate(pivot_server, sampling_params={"temperature": 0, "max_new_tokens": 40})["text"],
        generate(pivot_server, seed=50, steps=6)["text"],
    ]
    done = threading.Event()
    refused = 0

    def annoy() -> None:
        nonlocal refused
        while not done.is_set():
            params = {"custom_params": {**QUICK, "alpha": 0.5}}
            for stream in (False, True):
                body = {"text": PROMPT, "sampling_params": params, "stream": stream}
                refused += post(pivot_server, "/generate", body).status_code == httpx.codes.BAD_REQUEST

    annoyance = threading.Thread(target=annoy)
    annoyance.start()
    try:
        beside = [
            raw_generate(pivot_server, sampling_params={"temperature": 0, "max_new_tokens": 40})["text"],
            generate(pivot_server, seed=50, steps=6)["text"],
        ]
    finally:
        done.set()
        annoyance.join()
    assert beside == alone
    assert refused > 0


def test_a_refused_request_leaves_its_id_free(pivot_server: Server) -> None:
    params = {"max_new_tokens": 8, "custom_params": {**QUICK, "alpha": 0.5}}
    body = {"text": PROMPT, "rid": "refused-then-fine", "sampling_params": params}
    assert post(pivot_server, "/generate", body).status_code == httpx.codes.BAD_REQUEST
    params["custom_params"] = QUICK
    answer = post(pivot_server, "/generate", body)
    assert answer.status_code == httpx.codes.OK, answer.text
    assert answer.json()["meta_info"]["id"] == "refused-then-fine"
    assert power_of(answer.json())["sampler"] == "power"
