"""Row statistics and sampling of `p^kappa` from logits, with one law over all backends.

`ops` checks and dispatches to `reference`, `torch_backend`, `triton_backend` or `flashinfer_backend`. This
package knows logits only: nothing of sequences, samplers or SGLang. It imports without a GPU, nvcc, Triton
or FlashInfer.
"""

from .checks import KernelInputError
from .ops import available_backends, row_statistics, sample_rows, truncation_bounds
from .records import RowStatistics
from .uniforms import counter_uniforms
from .usage import counters

__all__ = [
    "KernelInputError",
    "RowStatistics",
    "available_backends",
    "counter_uniforms",
    "counters",
    "row_statistics",
    "sample_rows",
    "truncation_bounds",
]
