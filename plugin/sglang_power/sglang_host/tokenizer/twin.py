"""An Engine behind two prompts, for policies that compare them: both decode one answer in lock step.

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

from sglang_power.algorithms.engine import CallAbortedError, ContinuationCall, RankedToken
from sglang_power.errors import ChainAbortedError, OverloadedError
from sglang_power.sglang_host.child_params import Coupling
from sglang_power.sglang_host.tokenizer.children import (
    ChildEngine,
    joined,
    reaches_horizon,
    resumed,
)
from sglang_power.sglang_host.tokenizer.parent import Parent
from sglang_power.sglang_host.tokenizer.stopping import StopRule
from sglang_power.types import Continuation, ProposalLaw, Tokens, Usage, in_parallel

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
            CallAbortedError: the request was aborted.
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

    def share(self, wanted: int) -> int:
        """Return how many calls may run side by side so that other requests' children need not wait."""
        return self._main.share(wanted)

    async def most_likely(self, prefix: tuple[int, ...], count: int) -> tuple[list[RankedToken], Usage]:
        """Return the most likely tokens behind the main prompt."""
        return await self._main.most_likely(prefix, count)

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
            raise CallAbortedError(str(error), self.so_far) from error
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
        part = self._main.read(call, main, known)
        both = in_parallel([part.usage, self._twin.read(plain, outs[1], known).usage])
        usage = dataclasses.replace(both, wasted=both.decoded - 2 * len(part.tokens))
        return dataclasses.replace(part, usage=usage)
