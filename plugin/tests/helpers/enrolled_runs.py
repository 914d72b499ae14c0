"""An enrolled request on a stand-in of SGLang, which rewrites requests in place as SGLang does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

from sglang.srt.managers.io_struct import GenerateReqInput
from sglang_power.experiments.catalogue import Loaded
from sglang_power.experiments.enrolling import Enrolled, Facts
from sglang_power.experiments.model import Arm, Experiment
from sglang_power.experiments.records import Completion, ShadowRun
from sglang_power.experiments.state import State
from sglang_power.experiments.versions import config_hash
from sglang_power.samplers.fallback import Fallback
from sglang_power.server.config import ServerConfig
from sglang_power.sglang_host.experiments.enrolled import EnrolledRun
from sglang_power.sglang_host.tokenizer.body import NO_BODY, Body
from sglang_power.sglang_host.tokenizer.host import Host
from sglang_power.sglang_host.tokenizer.plan import PlainPlan, Plan, plan_arm

Json = dict[str, Any]
Original = Callable[..., AsyncIterator[Any]]

DEFAULT = PlainPlan(Fallback("parameters", "the default preset does not fit"))
"""Another plan than the arm's, so that one can answer for the other."""

ONE: Json = {"n": 1}
NONE: Json = {"sampler": "none"}
POLICY: Json = {"sampler": "top_n_sigma", "n": 1.2}

STOP, ABORT = {"type": "stop"}, {"type": "abort"}
BROKEN = {"type": "abort", "status_code": 503, "message": "busy"}


class Manager:
    """What a run touches of a TokenizerManager."""

    server_args = SimpleNamespace(incremental_streaming_output=False)
    model_config = SimpleNamespace(vocab_size=100)
    tokenizer = SimpleNamespace(encode=lambda text, **_: [1] * len(text))
    served_model_name = "m"
    enable_metrics = incremental_streaming_output = False

    def __init__(self) -> None:
        self.rid_to_state: dict[str, Any] = {}

    def _init_req_state(self, obj: Any, _: object) -> None:
        self.rid_to_state[obj.rid] = SimpleNamespace(abort_sent=False)


MANAGER = Manager()


def answer(text: str = "x", finish: Json | None = None, **more: Any) -> Json:
    """SGLang's response."""
    meta = {"finish_reason": finish, "prompt_tokens": 9, "cached_tokens": 4, "completion_tokens": len(text)}
    meta |= more.pop("meta", {})
    return {"text": text, "meta_info": meta, **more}


def replay(*responses: Any) -> Original:
    """A host that answers so, and raises what is an exception."""

    async def original(*_: object) -> AsyncIterator[Any]:
        for one in responses:
            if isinstance(one, BaseException):
                raise one
            yield one

    return original


class Sglang:
    """A host that says who drew the tokens: "policy", "plain", or nobody where none were asked for.

    Args:
        failure: of requests that a policy draws.

    Attributes:
        asked: all requests, those of one call one by one.
    """

    def __init__(self, failure: Exception | None = None) -> None:
        self._failure = failure
        self.asked: list[GenerateReqInput] = []

    async def __call__(self, _manager: object, obj: GenerateReqInput, _request: object) -> AsyncIterator[Any]:
        obj.normalize_batch_and_arguments()
        each = [obj] if obj.is_single else [obj[i] for i in range(len(obj.rid))]
        self.asked += each
        drawn = ["policy" if one.sampling_params.get("custom_params") else "plain" for one in each]
        if "policy" in drawn and self._failure is not None:
            raise self._failure
        limits = [one.sampling_params.get("max_new_tokens") for one in each]
        answers = [answer(text[:limit], STOP) for text, limit in zip(drawn, limits, strict=True)]
        yield answers[0] if obj.is_single else answers


class StubService:
    """What a run touches of a service; notes the order of things."""

    def __init__(self) -> None:
        self.settings = SimpleNamespace(log_text=False)
        self.shadows: Any = SimpleNamespace(start=lambda *_: self.order.append("shadows"))
        self.order: list[str] = []
        self.lines: list[Completion] = []
        self.shadow_lines: list[ShadowRun] = []

    def enrolled(self, *_: object) -> None:
        self.order.append("enrolment")

    def completed(self, _: Experiment, line: Completion) -> None:
        self.order.append("completion")
        self.lines.append(line)

    def shadow_ran(self, _: Experiment, line: ShadowRun) -> None:
        self.shadow_lines.append(line)

    def plan_of(self, arm: Arm, obj: Any, body: Body) -> Plan:
        return plan_arm(MANAGER, obj, body, ServerConfig(), arm.sampler)


def experiment(on_error: str = "error", shadows: tuple[Json, ...] = (), **fields: Any) -> Experiment:
    """Two arms, and one more for every shadow's parameters."""
    behind = [
        {"name": f"shadow{i}", "sampler": one, "weight": 0, "shadow": True} for i, one in enumerate(shadows)
    ]
    return Experiment.model_validate(
        {
            "name": "e",
            "owner": "o",
            "hypothesis": "h",
            "unit": {"field": "user"},
            "arms": (
                {"name": "plain", "sampler": NONE, "weight": 5000, "control": "plain"},
                {"name": "power", "sampler": {"sampler": "power"}, "weight": 5000},
                *behind,
            ),
            "metrics": {"m": {"source": "outcome", "outcomes": ("error",)}},
            "primary": {"metric": "m", "min_effect": 0.0},
            "on_error": on_error,
            **({"shadow": {"tokens_per_hour": 1000}} if shadows else {}),
            **fields,
        }
    )


def run_of(
    service: Any,
    original: Original,
    *,
    params: Json | None = ONE,
    sampler: Json = NONE,
    stream: bool = False,
    on_error: str = "error",
    each: Experiment | None = None,
    session_params: Json | None = None,
) -> EnrolledRun:
    """A run whose arm samples by `sampler`, on the host `original`."""
    obj = GenerateReqInput(text="prompt", sampling_params=params, session_params=session_params)
    each = experiment(on_error) if each is None else each
    place = Enrolled(Loaded(each, config_hash(each), State()), each.arm("power"), "unit")
    facts = Facts("m", "generate", stream, 8, {}, "u", {}, None)
    plan = plan_arm(MANAGER, obj, NO_BODY, ServerConfig(), sampler)
    host = Host(MANAGER, original, obj, None, ServerConfig())
    return EnrolledRun(service, host, facts, NO_BODY, [DEFAULT], place, plan)


async def drained(service: StubService, run: EnrolledRun) -> list[Any]:
    """All responses; the service notes when each was handed over."""
    found = []
    async for response in run.responses():
        service.order.append("response")
        found.append(response)
    return found
