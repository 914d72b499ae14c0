"""The only importer of SGLang's server internals.

Reading order, along one request: `install` (hooks, once per process) -> `entry` (the hook on
TokenizerManager.generate_request) -> `intake` (what the client asked) -> `support` (what this server
refuses) -> `orchestrator` (one call) -> a run per prompt (`prompt_run`, `selection_run`, `policy_run`,
`twin_run`) -> `children` (the Engine over child requests) and, in the scheduler process, `rows` ->
`sampler` -> `drawing` -> `statistics`. `openai` and `status` dress the HTTP side.
"""

from __future__ import annotations


def register() -> None:
    """Entry point of the group `sglang.srt.plugins`: install every hook in this process."""
    from sglang_power.sglang_host.install import install

    install()
