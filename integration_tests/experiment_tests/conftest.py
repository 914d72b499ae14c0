"""The server of the experiments that take longer than `make test` may: `make test-experiments`."""

from __future__ import annotations

from integration_tests.tests.conftest import no_thread_is_left, one_trials, trials

__all__ = ["no_thread_is_left", "one_trials", "trials"]
