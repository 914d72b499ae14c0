"""Per-step policies: temperature and truncation rules that look at one row of logits at a time.

Adding one: a file with a subclass of `Policy` (its fields are the request's parameters; `act` the rule in
torch, `law` the same in numpy, `examples` parameters to test), and its class in `registry.BUILT_IN`, or,
from another distribution, under the entry-point group `sglang_power.policies`. Being registered, it can be
named by requests and in power proposals, and runs through the law tests.
"""

from sglang_power.policies.base import Action, Columns, Policy, Row, Rows
from sglang_power.policies.registry import policies
from sglang_power.policies.shaping import Context, PolicyGroup, Shaped, shape_rows

__all__ = [
    "Action",
    "Columns",
    "Context",
    "Policy",
    "PolicyGroup",
    "Row",
    "Rows",
    "Shaped",
    "policies",
    "shape_rows",
]
