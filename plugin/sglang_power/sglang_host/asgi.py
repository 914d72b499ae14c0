"""The ASGI application of tokenizer workers: load the plugins, then hand over SGLang's own application.

SGLang does not load plugins in tokenizer workers; `register` points SGLANG_HTTP_SERVER_APP_PATH here.
"""

from sglang.srt.plugins import load_plugins

load_plugins()

from sglang.srt.entrypoints.http_server import app  # noqa: E402  (after the hooks)

__all__ = ["app"]
