"""Which sampler of whole answers serves a request, those of other distributions included.

A distribution adds one by the entry-point group `sglang_power.samplers`: a class with a `request` model and a
`run`, as `base.Sampler` has them. Policies that are no matter of one row are served by a sampler too: one
that branches by `branch`, one that compares two prompts by `contrast`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, cast

from sglang_power.errors import ConfigError
from sglang_power.policies import Policy
from sglang_power.request import BranchRequest, SamplerRequest
from sglang_power.request.needs import SAMPLING, Needs
from sglang_power.request.table import installed_samplers
from sglang_power.request.whole import WholeAnswerRequest
from sglang_power.samplers.base import Sampler
from sglang_power.samplers.best_of import BestOfSampler
from sglang_power.samplers.branch import BranchSampler
from sglang_power.samplers.contrast import ContrastSampler
from sglang_power.samplers.cot import CotSampler
from sglang_power.samplers.lookahead import LookaheadSampler
from sglang_power.samplers.perfect import PerfectSampler
from sglang_power.samplers.power import PowerSampler
from sglang_power.samplers.smc import SmcSampler
from sglang_power.samplers.vote import VoteSampler

BUILT_IN: tuple[type[Sampler[Any]], ...] = (
    PowerSampler,
    SmcSampler,
    PerfectSampler,
    LookaheadSampler,
    CotSampler,
    VoteSampler,
    BestOfSampler,
    BranchSampler,
)


@dataclass(frozen=True)
class Served:
    """A request as a sampler of whole answers serves it.

    Args:
        sampler: what serves it.
        request: what the sampler is asked; another request than the client's where it stands in for a policy.
        name: of the sampler or policy that the client asked for.
        needs: of the request.
    """

    sampler: Sampler[Any]
    request: WholeAnswerRequest | Policy
    name: str
    needs: Needs


@functools.cache
def samplers_of_whole_answers() -> dict[type[WholeAnswerRequest], Sampler[Any]]:
    """Return every sampler by its request model.

    Raises:
        ConfigError: one of another distribution that is none, or cannot be made.
    """
    classes = [*BUILT_IN, *cast("list[type[Sampler[Any]]]", installed_samplers())]
    return {each.request: _made(each) for each in classes}


def _made(sampler: type[Sampler[Any]]) -> Sampler[Any]:
    try:
        return sampler()
    except TypeError as error:
        named = f"{sampler.__module__}.{sampler.__qualname__}"
        raise ConfigError(f"the sampler {named} cannot be made without arguments: {error}") from error


def served(request: SamplerRequest) -> Served | None:
    """Return how a request is served; None where a per-step policy leaves it to the host's own path."""
    if isinstance(request, Policy):
        return _served_policy(request)
    return Served(samplers_of_whole_answers()[type(request)], request, type(request).name(), request.needs)


def _served_policy(policy: Policy) -> Served | None:
    if policy.branching is not None:
        branch = BranchRequest(**policy.branching)
        return Served(BranchSampler(), branch, policy.name(), branch.needs)
    if "twin" in policy.needs:
        needs = Needs(acting=SAMPLING, second_prompt=policy.twin_prompt)
        return Served(ContrastSampler(), policy, policy.name(), needs)
    return None
