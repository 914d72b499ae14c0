"""The expressions of this package: `s += gen(...)`, `s += refine(...)`, `s += vote(...)`.

Owns the split of arguments between SGLang and the sampler, and their validation: a mistake raises where the
program writes it, before anything is sent. Knows no server.
"""

from __future__ import annotations

from typing import Any

from sglang_power.errors import RequestError
from sglang_power.frontend._lang import PowerGen, Refine, SglExpr, gen_arguments
from sglang_power.request import NO_SAMPLER, parse_request

DRAFT_FIELDS = ("initial_ids", "initial_text")


def gen(name: str | None = None, sampler: str = "power", **arguments: Any) -> SglExpr:
    """`sgl.gen` with a sampler: `s += sp.gen("answer", sampler="power", alpha=4.0, max_tokens=256)`.

    Args:
        name: the variable.
        sampler: any of the server's: "power", "smc", "perfect", "lookahead", "cot", "vote", "best_of",
            "branch", a per-step policy, or "none" for SGLang's own sampling, whatever the server's default.
        arguments: those of `sgl.gen` keep their meaning, but for its `n`; all others are the sampler's
            parameters.

    Raises:
        RequestError: an argument is unknown or wrong.
    """
    known = gen_arguments()
    settings = {key: value for key, value in arguments.items() if key in known}
    values = {key: value for key, value in arguments.items() if key not in known}
    return PowerGen(name, _checked(sampler, values), settings)


def vote(name: str | None = None, **arguments: Any) -> SglExpr:
    """Self-consistency on the server: `gen` with sampler="vote"; among branches it is `select(by="vote")`."""
    return gen(name, sampler="vote", **arguments)


def refine(name: str, steps: int, **parameters: Any) -> SglExpr:
    """Power sampling that starts from what was generated last, which must be the variable `name`.

    The segment is taken back and a chain of `steps` Metropolis-Hastings steps starts from its tokens, under
    the same limit of tokens and the same stops.

    Args:
        name: the variable, which takes the result.
        steps: of the chain.
        parameters: further ones of `power`.

    Raises:
        RequestError: a parameter is unknown or wrong.
    """
    for field in DRAFT_FIELDS:
        if field in parameters:
            raise RequestError(field, parameters[field], "the draft is the segment itself", "Leave it out")
    return Refine(name, _checked("power", {"steps": steps, **parameters}))


def _checked(sampler: str, values: dict[str, Any]) -> dict[str, Any]:
    """`custom_params`, validated as the server does."""
    named = {"sampler": sampler, **values}
    if sampler != NO_SAMPLER:
        parse_request(named)
    elif values:
        field, value = next(iter(values.items()))
        raise RequestError(
            field, value, "sampler='none' has no parameters", "Leave it out, or name a sampler"
        )
    return named
