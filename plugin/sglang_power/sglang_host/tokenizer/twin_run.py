"""Serves one prompt with a policy that compares two prompts: both decode one answer in lock step.

The request and its twin are two children of a pair. In the scheduler the pair's main row draws, seeing the
twin's logits of the same step, and the twin repeats the token. SGLang does not promise to run two requests
in the same batch; a row without its partner says so and ends its child, the token is dropped and the pair
starts again from there. Draws are a function of (seed, position), so that changes no answer. A twin whose
main row is gone (abort, stop string) ends the same way. Tokenizer process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.errors import ChainAbortedError, OverloadedError
from sglang_power.rng import Key, Purpose, fresh_seed
from sglang_power.samplers.report import policy_report
from sglang_power.samplers.tasks import gather_or_cancel
from sglang_power.server import metrics
from sglang_power.server.config import ServerConfig
from sglang_power.server.metrics import Ending
from sglang_power.sglang_host.child_params import Coupling
from sglang_power.sglang_host.host_sampling import law_asked
from sglang_power.sglang_host.tokenizer import support
from sglang_power.sglang_host.tokenizer.alternatives import Asked
from sglang_power.sglang_host.tokenizer.answer_writer import Answer, AnswerWriter, Emit
from sglang_power.sglang_host.tokenizer.children import (
    ChildEngine,
    Prompt,
    joined,
    prepare_other_prompt,
    prepare_prompt,
    reaches_horizon,
    resumed,
)
from sglang_power.sglang_host.tokenizer.endings import endings_told
from sglang_power.sglang_host.tokenizer.parent import GenerateRequest, Parent
from sglang_power.sglang_host.tokenizer.plan import PolicyPlan
from sglang_power.sglang_host.tokenizer.prompt_run import slot
from sglang_power.sglang_host.tokenizer.stopping import StopRule, TextRule
from sglang_power.types import Continuation, ProposalLaw, Tokens, Usage

MAX_MISSES = 20
"""Attempts in a row without a token before the request fails: the server never runs the pair together."""


class TwinEngine:
    """Continues one answer behind two prompts.

    Args:
        parent: the request.
        main, twin: children of either prompt.
        stop: when the answer ends.
        name: of the answer, unique within the request.
    """

    def __init__(
        self, parent: Parent, main: ChildEngine, twin: ChildEngine, stop: StopRule, name: str
    ) -> None:
        self._parent, self._main, self._twin, self._name = parent, main, twin, name
        self._stop = stop
        self._attempts = 0
        self.so_far = Continuation(Tokens.EMPTY, finished=False, cut_short=False, usage=Usage())

    async def generate(self, call: ContinuationCall) -> Continuation:
        """Run one call to a stop or to its horizon.

        Raises:
            OverloadedError: the scheduler never had room for both children at once.
        """
        misses = 0
        while not (self.so_far.finished or reaches_horizon(call, self.so_far)):
            part = await self._attempt(resumed(call, self.so_far))
            misses = 0 if len(part.tokens) else misses + 1
            if misses == MAX_MISSES:
                raise OverloadedError(
                    f"the scheduler did not run the request and its twin together in {MAX_MISSES} attempts; "
                    "it needs room for two running requests"
                )
            self.so_far = joined(self.so_far, part)
        return self.so_far

    async def _attempt(self, call: ContinuationCall) -> Continuation:
        self._attempts += 1
        pair = f"{self._name}.{self._attempts}"
        plain = ContinuationCall(call.prefix, call.horizon, ProposalLaw(1.0), call.seed)
        known = self._known(call)
        children = [
            self._main.child(call, Coupling(pair, "main"), known),
            # The twin repeats the main row's tokens whatever they spell behind its own prompt.
            self._twin.child(plain, Coupling(pair, "twin"), known, stop=None),
        ]
        try:
            outs: Sequence[dict[str, Any]] = await self._parent.run_together(children)
        except ChainAbortedError as error:
            if error.partial:
                self.so_far = joined(self.so_far, self._read(call, plain, known, error.partial))
            raise
        return self._read(call, plain, known, outs)

    def _known(self, call: ContinuationCall) -> int:
        """1: the children start a token early and emit one that is known already.

        A prefill batch may hold one of the two alone, since SGLang fills it by tokens; but it prefills all
        that wait before it decodes, so from their second token on the two meet. 0 where the known token
        would end a child.
        """
        engines = self._main, self._twin
        if overhang := max(engine.overhang(call) for engine in engines):
            return overhang
        known = [engine.last_token(call) for engine in engines]
        ends = any(token in self._stop.tokens for token in known) or self._stop.string_at(known[:1], 1)
        return 0 if ends or any(engine.length(call) < 2 for engine in engines) else 1

    def _read(
        self,
        call: ContinuationCall,
        plain: ContinuationCall,
        known: int,
        outs: Sequence[dict[str, Any]],
    ) -> Continuation:
        """What both children came to; all that is not a kept token of the pair is wasted.

        The twin's logits make the main row's law, so a retraction of either is one of the main child.
        """
        retractions = sum(out["meta_info"].get("num_retractions") or 0 for out in outs)
        main = {**outs[0], "meta_info": {**outs[0]["meta_info"], "num_retractions": retractions}}
        part, twin = self._main.read(call, main, known), self._twin.read(plain, outs[1], known).usage
        decoded = part.usage.decoded + twin.decoded
        usage = Usage(
            decoded=decoded,
            prefilled=part.usage.prefilled + twin.prefilled,
            wasted=decoded - 2 * len(part.tokens),
            depth=part.usage.depth,
            children=2,
        )
        return dataclasses.replace(part, usage=usage)


class TwinRun:
    """One parent request with a twin: n answers.

    Args: as PolicyRun.
    """

    def __init__(
        self,
        manager: Any,
        original: GenerateRequest,
        obj: Any,
        request: Any,
        plan: PolicyPlan,
        config: ServerConfig,
    ) -> None:
        self._manager, self._plan, self._config = manager, plan, config
        self._parent = Parent(manager, original, obj, request, config.limits)
        self._seed = fresh_seed() if plan.policy.seed is None else plan.policy.seed

    async def answers(self, emit: Emit | None, first_index: int) -> list[Answer]:
        """All answers; they also go to `emit`, numbered from `first_index`."""
        with self._parent as parent, endings_told(self._unanswered):
            prompt = twin = Prompt([], {"cached_tokens": 0}, Usage())
            try:
                async with slot(parent, self._config):
                    prompt = await prepare_prompt(parent)
                    assert self._plan.policy.twin_prompt is not None
                    twin = await prepare_other_prompt(parent, self._plan.policy.twin_prompt[1])
                    return await gather_or_cancel(
                        [self._answer(prompt, twin, i, emit, first_index) for i in range(self._plan.chains)]
                    )
            except ChainAbortedError as error:
                power = self._report(prompt, prompt.usage + twin.usage)
                empty = self._writer(prompt).aborted(Tokens.EMPTY, str(error), power)
                return [self._counted(empty, i, emit, first_index) for i in range(self._plan.chains)]

    async def _answer(
        self, prompt: Prompt, twin: Prompt, number: int, emit: Emit | None, first_index: int
    ) -> Answer:
        parent, writer = self._parent, self._writer(prompt)
        stop = StopRule.of(self._manager, parent.params)
        rank = prompt.meta_info.get("dp_rank") if self._manager.server_args.dp_size > 1 else None
        name = f"{parent.obj.rid}.{number}"
        asked = Asked.of(self._manager, parent.obj)
        main_engine = ChildEngine(parent, prompt, stop, rank, asked=asked)
        twin_engine = ChildEngine(parent, twin, StopRule(stop.tokenizer, (), stop.tokens, 1), rank)
        engine = TwinEngine(parent, main_engine, twin_engine, stop, name)
        seed = Key(self._seed, number).child_seed(0, Purpose.POLICY)
        call = ContinuationCall((), self._horizon(prompt, twin), self._law(), seed)
        prompts = prompt.usage + twin.usage if number == 0 else Usage()
        try:
            whole = await engine.generate(call)
            power = self._report(prompt, whole.usage + prompts)
            answer = writer.final(whole.tokens, whole.finished, power)
        except ChainAbortedError as error:
            power = self._report(prompt, engine.so_far.usage + prompts)
            answer = writer.aborted(engine.so_far.tokens, str(error), power)
        return self._counted(answer, number, emit, first_index)

    def _writer(self, prompt: Prompt) -> AnswerWriter:
        params = self._parent.params
        stop, text = StopRule.of(self._manager, params), TextRule.of(self._manager, params)
        return AnswerWriter(self._parent, prompt, stop, text)

    def _report(self, prompt: Prompt, usage: Usage) -> dict[str, Any]:
        version = prompt.meta_info.get("weight_version")
        return policy_report(self._plan.policy, self._seed, version, usage)

    def _unanswered(self, ending: Ending) -> None:
        missing = self._plan.chains - self._parent.answers
        metrics.observe_policy(self._plan.policy.name(), ending, self._manager.enable_metrics, missing)

    def _counted(self, answer: Answer, number: int, emit: Emit | None, first_index: int) -> Answer:
        """An answer, counted and sent."""
        self._parent.count_answer(answer["meta_info"])
        finish = answer["meta_info"]["finish_reason"]["type"]
        metrics.observe_policy(self._plan.policy.name(), finish, self._manager.enable_metrics)
        if emit is not None:
            emit(first_index + number, answer)
        return answer

    def _horizon(self, prompt: Prompt, twin: Prompt) -> int:
        longest = max(len(prompt.ids), len(twin.ids))
        return support.horizon_behind(self._manager, self._parent.params, longest)

    def _law(self) -> ProposalLaw:
        """The request's own temperature and truncation around the policy, as SGLang reads them."""
        return law_asked(self._manager, self._parent.params, self._plan.policy)
