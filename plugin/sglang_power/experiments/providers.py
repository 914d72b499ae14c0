"""Where answers to flags come from: OpenFeature's client, under a domain of this plugin's own.

`Embedded` evaluates the directory's flags in this process, at once. `External` asks a provider of another
distribution, off the event loop, with a deadline and a circuit breaker; an entry point of the group
`sglang_power.flag_providers` makes it: a function without arguments that returns an OpenFeature provider.
Knows no experiment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias

from openfeature import api
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import FlagEvaluationDetails, FlagResolutionDetails, FlagValueType, Reason
from openfeature.provider import AbstractProvider, FeatureProvider, Metadata
from purgatory import AsyncCircuitBreakerFactory
from purgatory.domain.model import OpenedState

from sglang_power.errors import ConfigError
from sglang_power.experiments.settings import EMBEDDED, Breaker
from sglang_power.extensions import extensions, install_extra

if TYPE_CHECKING:  # of the extra [ab]
    from openfeature.contrib.tools.flagd.api.evaluator import Evaluator

DOMAIN: Final = "sglang_power"
ENTRY_POINTS: Final = "sglang_power.flag_providers"
THREADS: Final = 16
"""Questions that an external provider may hang on at once; more wait, and run into their deadline."""

NoAnswer = Literal["provider_error", "provider_timeout", "provider_default", "circuit_open"]
Details: TypeAlias = FlagEvaluationDetails[str]


class UnansweredError(Exception):
    """A flag without a value that somebody chose."""

    def __init__(self, reason: NoAnswer) -> None:
        self.reason: NoAnswer = reason
        super().__init__(reason)


class Source(Protocol):
    """Answers flags."""

    def load(self, flags: dict[str, Any]) -> None:
        """Replace all flags at once, where they are this process's own; see `flags.flag_set`."""

    async def ask(self, flag: str, unit: str) -> str:
        """The value of a flag for a unit.

        Raises:
            UnansweredError: there is none.
        """


class Embedded:
    """Flags that are evaluated in this process by flagd's evaluator; no thread, no network.

    Raises:
        ConfigError: the extra `[ab]` is not installed.
    """

    def __init__(self) -> None:
        try:
            from openfeature.contrib.tools.flagd.core import FlagdCore
        except ImportError as error:
            problem = "experiments with provider: embedded need flagd's evaluator"
            raise ConfigError(f"{problem}: {install_extra('ab')}") from error
        self._evaluator = FlagdCore()
        api.set_provider_and_wait(_FlagdProvider(self._evaluator), DOMAIN)
        self._client = api.get_client(DOMAIN)

    def load(self, flags: dict[str, Any]) -> None:
        """Replace all flags at once."""
        self._evaluator.set_flags(flags)

    async def ask(self, flag: str, unit: str) -> str:
        """Return the evaluator's value of a flag for a unit."""
        return _value(self._client.get_string_details(flag, "", EvaluationContext(unit)))


class External:
    """Flags of a provider that may be slow, or gone; it keeps them itself.

    Args:
        provider: initialised in a thread of its own; until then it gives no answers.
        deadline_ms: for one answer.
        breaker: when it is no longer asked.
    """

    def __init__(self, provider: FeatureProvider, deadline_ms: float, breaker: Breaker) -> None:
        api.set_provider(provider, DOMAIN)
        self._client = api.get_client(DOMAIN)
        self._deadline_s = deadline_ms / 1000
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="sglang_power_flags")
        self._breakers = AsyncCircuitBreakerFactory(breaker.failures, breaker.reset_s)

    def load(self, flags: dict[str, Any]) -> None:
        """Do nothing: the provider keeps its flags itself."""

    async def ask(self, flag: str, unit: str) -> str:
        """Return the provider's value of a flag for a unit, within the deadline."""
        # A client that goes away cancels its request; that is no failure of the provider.
        return await asyncio.shield(self._ask(flag, unit))

    async def _ask(self, flag: str, unit: str) -> str:
        try:
            async with await self._breakers.get_breaker("flags"):
                async with asyncio.timeout(self._deadline_s):
                    details = await self._details(flag, unit)
                if details.error_code == ErrorCode.GENERAL:  # it raised; other codes are answers
                    raise UnansweredError("provider_error")
        except OpenedState as error:
            error.__traceback__ = None  # purgatory raises one object again and again, which would grow
            raise UnansweredError("circuit_open") from None
        except TimeoutError:
            raise UnansweredError("provider_timeout") from None
        return _value(details)

    async def _details(self, flag: str, unit: str) -> Details:
        ask, context = self._client.get_string_details, EvaluationContext(unit)
        return await asyncio.get_running_loop().run_in_executor(self._threads, ask, flag, "", context)


def installed_provider(name: str) -> FeatureProvider:
    """The provider that another distribution makes under a name.

    Raises:
        ConfigError: there is none, or it cannot be made.
    """
    found = {point: (named, factory) for point, named, factory in extensions(ENTRY_POINTS)}
    if name not in found:
        known = ", ".join(sorted({EMBEDDED, *found}))
        raise ConfigError(f"experiments.provider={name!r}: no such provider. Installed are: {known}")
    named, factory = found[name]
    try:
        provider: FeatureProvider = factory()
    except Exception as error:
        raise ConfigError(f"{named}: {error}") from error
    if not callable(getattr(provider, "resolve_string_details", None)):
        raise ConfigError(f"{named}: returned no OpenFeature provider, but {provider!r}")
    return provider


def _value(details: Details) -> str:
    if details.error_code is not None or details.reason == Reason.ERROR:
        raise UnansweredError("provider_error")
    if details.variant is None or details.reason in (Reason.DEFAULT, Reason.DISABLED):
        raise UnansweredError("provider_default")
    return details.value


class _FlagdProvider(AbstractProvider):
    """flagd's evaluator as OpenFeature's client wants it."""

    def __init__(self, evaluator: Evaluator) -> None:
        super().__init__()
        self._evaluator = evaluator

    def get_metadata(self) -> Metadata:
        return Metadata("sglang_power embedded flagd")

    def resolve_string_details(
        self, flag_key: str, default_value: str, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[str]:
        return self._evaluator.resolve_string_value(flag_key, default_value, evaluation_context)

    def resolve_boolean_details(
        self, flag_key: str, default_value: bool, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[bool]:
        return self._evaluator.resolve_boolean_value(flag_key, default_value, evaluation_context)

    def resolve_integer_details(
        self, flag_key: str, default_value: int, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[int]:
        return self._evaluator.resolve_integer_value(flag_key, default_value, evaluation_context)

    def resolve_float_details(
        self, flag_key: str, default_value: float, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[float]:
        return self._evaluator.resolve_float_value(flag_key, default_value, evaluation_context)

    def resolve_object_details(
        self,
        flag_key: str,
        default_value: Sequence[FlagValueType] | Mapping[str, FlagValueType],
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[Sequence[FlagValueType] | Mapping[str, FlagValueType]]:
        return self._evaluator.resolve_object_value(flag_key, default_value, evaluation_context)
