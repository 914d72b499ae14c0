"""sglang-power: sequence-level power sampling as a plugin for existing SGLang deployments.

The package is laid out in the order in which a request meets it: `request` (what a client may ask),
`sglang_host` (where the server hands the request over), `samplers` (what a sampler of whole answers awaits),
`algorithms` and `policies` (the mathematics, pure), `answers` (what a text answers, and choosing among
several), `engines` (what continues token sequences).
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("sglang-power")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
