"""The only importer of SGLang's server internals.

The order in which a request meets its modules is in plugin/docs/developing.md. `tokenizer` and `scheduler`
are for the two processes of SGLang, `experiments` stands on `tokenizer`; `hooks` lists every touch of SGLang.
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
