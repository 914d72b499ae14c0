"""How requests end, those included that give no answer: each chain is counted once. Tokenizer process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sglang_power.errors import ChainAbortedError
from sglang_power.samplers.tasks import SIBLING_FAILED
from sglang_power.server import metrics
from sglang_power.server.metrics import Ending
from sglang_power.sglang_host.tokenizer.clients import GONE
from sglang_power.sglang_host.tokenizer.parent import Parent


def ending_of(error: BaseException) -> Ending:
    """Return what an exception says of the end of a request.

    SGLang cancels the task of a stream, or closes its generator, once the client has gone; where there is no
    stream it raises a ValueError that says so. Every other ValueError is its 400.
    """
    if isinstance(error, ChainAbortedError):
        return "abort"
    if isinstance(error, asyncio.CancelledError) and SIBLING_FAILED in error.args:
        return "error"
    if isinstance(error, asyncio.CancelledError | GeneratorExit) or GONE in str(error):
        return "disconnect"
    return "refused" if isinstance(error, ValueError) else "error"


@contextmanager
def endings_told(tell: Callable[[Ending], None]) -> Iterator[None]:
    """Tell how a with-block ended, where that was by an exception."""
    try:
        yield
    except BaseException as error:
        tell(ending_of(error))
        raise


@contextmanager
def endings_counted(parent: Parent, sampler: str, chains: int, *, of_policy: bool = False) -> Iterator[None]:
    """Count the chains of a with-block that give no answer, and the tokens that no answer reports.

    Args:
        parent: the request, which knows its answers and its children's tokens.
        sampler: the label.
        chains: how many answers were asked for.
        of_policy: whether a per-step policy draws them, whose answers are counted as such, too.
    """
    enabled = parent.manager.enable_metrics

    def unanswered(ending: Ending) -> None:
        metrics.observe_requests(sampler, ending, enabled, chains - parent.answers)
        if of_policy:
            metrics.observe_policy(sampler, ending, enabled, chains - parent.answers)

    try:
        with endings_told(unanswered):
            yield
    finally:
        if parent.reports < chains:
            metrics.observe_tokens(sampler, parent.unreported, enabled)
