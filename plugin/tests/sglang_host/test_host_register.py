"""The plugin's entry point: whatever goes wrong in it ends the process, since SGLang serves on without it."""

from __future__ import annotations

import sys

import pytest
from sglang_power import sglang_host
from sglang_power.sglang_host import install


@pytest.mark.parametrize("module", ["sglang_power.sglang_host.install", "sglang_power.sglang_host.hooks"])
def test_a_module_that_cannot_be_imported_ends_the_process(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dependency that is missing, or one of SGLang's modules that a later version has moved."""
    monkeypatch.delitem(sys.modules, "sglang_power.sglang_host.install")
    monkeypatch.delattr(sglang_host, "install")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit, match=f"sglang-power cannot be installed: .*{module}"):
        sglang_host.register()


@pytest.mark.parametrize("error", [TypeError("changed"), KeyError("gone"), OSError("away")])
def test_a_hook_that_cannot_be_made_ends_the_process(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(install, "_register_sampler", fail)
    monkeypatch.setattr(install, "check_experiments", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        sglang_host.register()
    assert repr(error) in str(ended.value)
    assert ended.value.__cause__ is error
