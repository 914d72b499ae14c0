"""Every reward by its name: the configured endpoints and those of the group `sglang_power.rewards`.

An entry point's name is the reward's; it loads a callable (prompt, answer) -> float, plain or asynchronous,
with an optional attribute `upper_bound`, or an object that is a `Reward`. It is loaded in every process of
the server, so a reward that needs a model of its own loads that with its first call.
"""

from __future__ import annotations

import functools
import numbers
from collections.abc import Mapping

from sglang_power.errors import ConfigError, RequestError
from sglang_power.extensions import extensions
from sglang_power.fields import MAX_REWARD
from sglang_power.rewards.base import FunctionReward, NamedReward, as_float
from sglang_power.rewards.endpoint import Endpoint, EndpointConfig

ENTRY_POINTS = "sglang_power.rewards"


@functools.cache
def installed_rewards() -> dict[str, NamedReward]:
    """Name -> reward of another distribution; a failed call fails its request.

    Raises:
        ConfigError: an entry point that cannot be loaded, is no reward, or takes a name that is in use.
    """
    found: dict[str, NamedReward] = {}
    for name, named, loaded in extensions(ENTRY_POINTS):
        if name in found:
            raise ConfigError(f"{named}: the name {name!r} is in use; choose another")
        found[name] = NamedReward(name, _called(name, named, loaded))
    return found


def _called(name: str, named: str, loaded: object) -> FunctionReward:
    function = getattr(loaded, "score", loaded)
    if isinstance(loaded, type) or not callable(function):
        raise ConfigError(f"{named}: neither a callable (prompt, answer) nor an object with `score`")
    bound = getattr(loaded, "upper_bound", None)
    if bound is not None and not (isinstance(bound, numbers.Real) and abs(as_float(bound)) <= MAX_REWARD):
        problem = f"neither None nor a number between -{MAX_REWARD:g} and {MAX_REWARD:g}"
        raise ConfigError(f"{named}: upper_bound={bound!r} is {problem}")
    return FunctionReward(name, function, None if bound is None else float(bound))


@functools.cache
def _endpoint(name: str, config: EndpointConfig) -> Endpoint:
    """One per process, which keeps its connections and its limit."""
    return Endpoint(name, config)


def reward(name: str, endpoints: Mapping[str, EndpointConfig], field: str = "reward") -> NamedReward:
    """The reward that a request names.

    Args:
        name: what it wrote.
        endpoints: the section `rewards` of the server's configuration, which shares no name with what is
            installed (`server.config` checks it).
        field: where it wrote it.

    Raises:
        RequestError: there is none of that name.
    """
    if name in endpoints:
        return NamedReward(name, _endpoint(name, endpoints[name]), endpoints[name].on_error)
    if name in installed_rewards():
        return installed_rewards()[name]
    known = ", ".join(sorted({*endpoints, *installed_rewards()})) or "none are configured"
    raise RequestError(field, name, "unknown reward", f"Rewards of this server: {known}")
