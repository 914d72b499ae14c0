"""Whose tokens a request uses: by a header, of which nothing but a hash is kept. Tokenizer process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from sglang_power import clock
from sglang_power.errors import KeyLimitError
from sglang_power.server import metrics
from sglang_power.server.allowance import Allowance
from sglang_power.server.config import KeyLimit
from sglang_power.sglang_host.tokenizer.host import Host


def key_of(request: Any, header: str) -> str:
    """Return the hash of a request's header; requests without it are of one key."""
    return hashlib.sha256(request.headers.get(header, "").encode()).hexdigest()


class KeyAccount:
    """The tokens of the key that a request came with.

    Args:
        allowance: of all keys of this process.
        limit: the server's.
        key: as `key_of` says.
    """

    def __init__(self, allowance: Allowance, limit: KeyLimit, key: str) -> None:
        self._allowance, self._limit, self._key = allowance, limit, key

    def check(self, *, enabled: bool) -> None:
        """Check that the key has tokens left.

        Args:
            enabled: whether this server exports metrics.

        Raises:
            KeyLimitError: it has none.
        """
        wait_s = self._allowance.wait_s(self._key, clock.now())
        if wait_s > 0:
            metrics.observe_key_refusal(enabled)
            raise KeyLimitError(self._limit.header, self._limit.tokens_per_minute, wait_s)

    def spend(self, tokens: int) -> None:
        """Withdraw tokens that were decoded."""
        self._allowance.spend(self._key, tokens, clock.now())


def account_of(host: Host) -> KeyAccount | None:
    """Return the account that a call is on; None where the server limits no keys, or it came by no HTTP."""
    limit = host.config.limits.per_key
    if limit is None or host.request is None or (allowance := host.state.allowance) is None:
        return None
    return KeyAccount(allowance, limit, key_of(host.request, limit.header))


def spending(account: KeyAccount | None) -> Callable[[int], None] | None:
    """Return what a Meter tells of decoded tokens."""
    return None if account is None else account.spend
