"""The only importer of SGLang's server internals.

Reading order, along one request: `install` (hooks, once per process) -> `entry` (the hook on
TokenizerManager.generate_request) -> `intake` (what the client asked) -> `support` (what this server
refuses) -> `orchestrator` (one call) -> a run per prompt (`prompt_run`, `selection_run`, `policy_run`,
`twin_run`) -> `children` (the Engine over child requests) and, in the scheduler process, `rows` ->
`sampler` -> `drawing` -> `statistics`. `openai` and `status` dress the HTTP side.
"""

from __future__ import annotations


def register() -> None:
    """Entry point of the group `sglang.srt.plugins`: install every hook in this process, or end it.

    SGLang logs what a plugin raises and serves without it, so even a missing dependency, or a module that a
    later SGLang has moved, must not leave this function as an exception.
    """
    try:
        from sglang_power.sglang_host.install import install

        install()
    except Exception as error:
        raise SystemExit(f"sglang-power cannot be installed: {error!r}") from error
