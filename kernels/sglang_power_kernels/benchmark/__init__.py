"""The benchmark of the row functions: `sglang-power bench kernels`.

`settings` says what to measure, `workloads` and `stock` hold what is timed, `measuring` times it in
interleaved rounds, `traffic` counts bytes, `targets` judges, `machine` says where, `page` writes it down and
`runner` puts these together. Knows the package's public functions; nothing of the command line or SGLang.
"""

from .page import target_lines
from .runner import run, write
from .settings import Settings, SettingsError

__all__ = ["Settings", "SettingsError", "run", "target_lines", "write"]
