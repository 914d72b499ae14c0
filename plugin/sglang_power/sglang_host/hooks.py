"""Every touch of SGLang, in one table: what is hooked, where it must be live, and whether it is.

Targets exist with these signatures in SGLang 0.5.20 to 0.5.23 unless `optional` says otherwise. SGLang
logs and swallows hooks that cannot be applied, so `state` looks at the target itself.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["around", "after", "replace"]
State = Literal["live", "missing", "absent"]

_HOST = "sglang_power.sglang_host"


@dataclass(frozen=True)
class Hook:
    """One hook point.

    Args:
        target: dotted path in SGLang.
        kind: how the plugin's function or class is applied.
        own: "module:name" of the plugin's side, imported when hooks are installed.
        purpose: what breaks without it.
        roles: process roles that need it.
        optional: a version of SGLang may lack the target.
    """

    target: str
    kind: Kind
    own: str
    purpose: str
    roles: tuple[str, ...]
    optional: bool = False

    def load(self) -> Any:
        """The plugin's side."""
        module, name = self.own.split(":")
        return getattr(importlib.import_module(module), name)

    def exists(self) -> bool:
        """Whether this version of SGLang has the target."""
        try:
            pkgutil.resolve_name(self.target)
        except (ImportError, AttributeError):
            return False
        return True

    def misfit(self) -> str | None:
        """Return why the plugin's side cannot stand on this version's target, or None where it can.

        A function has to take what the target takes; a class has to find the methods that it overrides.
        """
        found, own = pkgutil.resolve_name(self.target), self.load()
        if self.kind == "replace":
            gone = [name for name in vars(own) if name.startswith("adjusted_") and not hasattr(found, name)]
            return f"it has no {', '.join(gone)}" if gone else None
        parameters = inspect.signature(found).parameters.values()
        given = [
            each.name
            for each in parameters
            if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
        ]
        named = {each.name: None for each in parameters if each.kind == each.KEYWORD_ONLY}
        try:
            inspect.signature(own).bind(None, *given, **named)  # the original, or its result, comes first
        except TypeError as error:
            return f"it takes ({', '.join([*given, *named])}), and {self.own}: {error}"
        return None

    def state(self) -> State:
        """ "live", or "missing" where the target is not ours, or "absent" where there is none."""
        try:
            found = pkgutil.resolve_name(self.target)
        except (ImportError, AttributeError):
            return "absent"
        return "live" if _leads_to(found, self.load()) else "missing"


def _leads_to(found: Any, own: Any) -> bool:
    """Follow SGLang's wrappers (closures over the hook, chained by __wrapped__) to our object."""
    while found is not None:
        cells = [cell.cell_contents for cell in getattr(found, "__closure__", None) or ()]
        if found is own or own in [cell for cell in cells if callable(cell)]:
            return True
        found = getattr(found, "__wrapped__", None)
    return False


HOOKS = (
    Hook(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager.generate_request",
        "around",
        f"{_HOST}.entry:generate_request",
        "power requests are served",
        ("tokenizer",),
    ),
    Hook(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager.update_request_meta_info",
        "around",
        f"{_HOST}.entry:update_request_meta_info",
        "statistics of power rows do not leak into other requests' meta_info",
        ("tokenizer",),
    ),
    Hook(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager.abort_request",
        "around",
        f"{_HOST}.entry:abort_request",
        "abort_all ends every chain",
        ("tokenizer",),
    ),
    Hook(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager._dispatch_to_scheduler",
        "around",
        f"{_HOST}.entry:dispatch_to_scheduler",
        "children that are ready together start in one pass",
        ("tokenizer",),
    ),
    Hook(
        "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo",
        "replace",
        f"{_HOST}.scheduler.rows:PowerSamplingBatchInfo",
        "the sampler sees which rows are its own",
        ("scheduler",),
    ),
    Hook(
        "sglang.srt.model_executor.model_runner.ModelRunner.sample",
        "around",
        f"{_HOST}.scheduler.row_memory:sample",
        "policies see the token before, statistics leave penalties out, those of whole answers act",
        ("scheduler",),
    ),
    Hook(
        "sglang.srt.entrypoints.api_contract.generate_contract_error",
        "around",
        f"{_HOST}.entry:generate_contract_error",
        "sampling_params.sampler is accepted; streaming /generate answers bad requests with 400",
        ("tokenizer",),
        optional=True,
    ),
    Hook(
        "sglang.srt.entrypoints.openai.serving_completions.OpenAIServingCompletion._build_completion_response",
        "around",
        f"{_HOST}.tokenizer.openai:build_response",
        "completions carry metadata.power",
        ("tokenizer",),
    ),
    Hook(
        "sglang.srt.entrypoints.openai.serving_chat.OpenAIServingChat._build_chat_response",
        "around",
        f"{_HOST}.tokenizer.openai:build_response",
        "chat completions carry metadata.power",
        ("tokenizer",),
    ),
    Hook(
        "sglang.srt.entrypoints.openai.serving_completions.OpenAIServingCompletion._generate_completion_stream",
        "around",
        f"{_HOST}.tokenizer.openai:stream",
        "completion streams carry progress and metadata.power",
        ("tokenizer",),
    ),
    Hook(
        "sglang.srt.entrypoints.openai.serving_chat.OpenAIServingChat._generate_chat_stream",
        "around",
        f"{_HOST}.tokenizer.openai:stream",
        "chat streams carry progress and metadata.power",
        ("tokenizer",),
    ),
    Hook(
        "sglang.srt.entrypoints.ollama.serving.OllamaServing._stream_chat_response",
        "around",
        f"{_HOST}.tokenizer.ollama:stream",
        "an error in a stream of Ollama's chat route reaches its client",
        ("tokenizer",),
        optional=True,
    ),
    Hook(
        "sglang.srt.entrypoints.ollama.serving.OllamaServing._stream_generate_response",
        "around",
        f"{_HOST}.tokenizer.ollama:stream",
        "an error in a stream of Ollama's generate route reaches its client",
        ("tokenizer",),
        optional=True,
    ),
    Hook(
        "sglang.srt.entrypoints.http_server.set_global_state",
        "after",
        f"{_HOST}.startup:started",
        "GET /sglang_power/status and POST /sglang_power/feedback exist, experiments are read",
        ("tokenizer",),
    ),
    Hook(
        "sglang.srt.utils.auth.decide_request_auth",
        "around",
        f"{_HOST}.experiments.feedback_route:request_auth",
        "feedback has a key of its own, beside the server's",
        ("tokenizer",),
        optional=True,
    ),
    Hook(
        "sglang.srt.arg_groups.overrides._sampling_backend_default",
        "around",
        f"{_HOST}.entry:sampling_backend_default",
        "--sampling-backend power means the platform's default backend",
        ("main",),
        optional=True,
    ),
    Hook(
        "uvicorn.run",
        "around",
        f"{_HOST}.entry:uvicorn_run",
        "tokenizer workers load the plugin (0.5.20 to 0.5.22)",
        ("main",),
    ),
)
