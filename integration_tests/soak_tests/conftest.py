"""The server of the soak test."""

from __future__ import annotations

from integration_tests.tests.conftest import logs, no_thread_is_left, pivot_server, third_party

__all__ = ["logs", "no_thread_is_left", "pivot_server", "third_party"]
