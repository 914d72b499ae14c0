"""What a client may ask: one pydantic model per sampler, the only place of defaults.

Unknown keys, wrong types and wrong ranges end here, as one RequestError that names the field, the value
and what to do. Samplers of whole answers have a file each; every per-step policy is a model of its own in
`policies`. Models know nothing of the server; `sglang_host.tokenizer` fills in what SGLang's own sampling
parameters say.
"""

from sglang_power.request.branch import BranchRequest
from sglang_power.request.lookahead import LookaheadRequest
from sglang_power.request.needs import Capped, Needs, Wanted
from sglang_power.request.own_law import OwnLawRequest
from sglang_power.request.perfect import PerfectRequest
from sglang_power.request.power import PowerRequest
from sglang_power.request.selection import CotRequest, SamplesRequest, SelectionRequest
from sglang_power.request.smc import SmcRequest
from sglang_power.request.table import (
    NO_SAMPLER,
    STATISTICS,
    STRICT,
    SamplerRequest,
    is_strict,
    parse_power,
    parse_request,
    samplers,
    switch,
)
from sglang_power.request.voting import BestOfRequest, VoteRequest
from sglang_power.request.whole import WholeAnswerRequest

__all__ = [
    "NO_SAMPLER",
    "STATISTICS",
    "STRICT",
    "BestOfRequest",
    "BranchRequest",
    "Capped",
    "CotRequest",
    "LookaheadRequest",
    "Needs",
    "OwnLawRequest",
    "PerfectRequest",
    "PowerRequest",
    "SamplerRequest",
    "SamplesRequest",
    "SelectionRequest",
    "SmcRequest",
    "VoteRequest",
    "Wanted",
    "WholeAnswerRequest",
    "is_strict",
    "parse_power",
    "parse_request",
    "samplers",
    "switch",
]
