"""What a request for `smc` may say."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from sglang_power.algorithms.resampling import Scheme
from sglang_power.algorithms.smc import SMCConfig
from sglang_power.fields import (
    MAX_COUNT,
    Positive,
    Probability,
    conflict,
)
from sglang_power.request.needs import Needs
from sglang_power.request.proposals import DraftedRequest
from sglang_power.request.selection import SelectionRequest

OF_VOTES = ("answer", "answer_regex", "equivalence", "return_tree", "return_rows")
"""Parameters that act with result="vote" alone."""

OF_SEVERAL = ("resampling", "ess_threshold", "block_size", "ramp")
"""Parameters that act where there are several particles: the ramp is made up for at the end."""


class SmcRequest(SelectionRequest, DraftedRequest):
    """`sampler="smc"`: one answer from p(y)^alpha by particles that grow together.

    Power-SMC (arXiv 2602.10273); several runs are steps of particle-independent Metropolis-Hastings (Andrieu,
    Doucet & Holenstein, 2010), so that with result="sample" the law is p^alpha in the limit of runs.

    Args:
        alpha: exponent, 1 to 1,000.
        particles: N, of a run.  runs: K, which advance side by side.
        proposal_temperature: tau, 1e-6 to 1e6; 1/alpha where absent.
        proposal_policy, top_p, top_k, min_p: shape and truncate the proposal, as in `power`.
        block_size: tokens between two times at which particles may be resampled.
        ess_threshold: they are where the effective sample size is below this share of N.
        resampling: "systematic", or "chopthin", which leaves weights unequal within a bound. With a draft it
            is multinomial, which a conditional run needs.
        ramp: tokens over which the exponent of the weights rises from 1 to alpha.
        result: a "sample" by weight; "argmax": the likeliest particle of all runs; "vote": the class of equal
            answers of largest weight, and its likeliest particle.
        initial_text, initial_ids: a draft, the reference particle of the first run (particle Gibbs).
        answer, answer_regex, equivalence, return_tree, return_rows: with result="vote", as in `vote`.
    """

    speaks_of: ClassVar[dict[str, str]] = dict.fromkeys(OF_VOTES, "result")
    """What says how to vote is dropped where a later layer (a preset, a request) names another result."""

    sampler: Literal["smc"] = "smc"
    particles: Positive = 16
    runs: Positive = 1
    block_size: Positive = 16
    ess_threshold: Probability = 0.5
    resampling: Literal["systematic", "chopthin"] = "systematic"
    ramp: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0
    result: Literal["sample", "argmax", "vote"] = "sample"

    @model_validator(mode="after")
    def _what_acts(self) -> Self:
        named = self.model_fields_set
        for field in OF_VOTES if self.result != "vote" else ():
            if field in named:
                raise conflict(field, f"not used with result={self.result!r}", "Set result to 'vote'")
        for field in OF_SEVERAL if self.particles == 1 else ():
            if field in named:
                raise conflict(field, "not used with particles=1", "Raise particles, or leave it out")
        if self.ramp and self.alpha == 1.0:
            raise conflict("ramp", "nothing rises to an alpha of 1", "Leave it out, or raise alpha")
        return self

    @model_validator(mode="after")
    def _draft_as_reference(self) -> Self:
        if not self.drafted:
            return self
        if "resampling" in self.model_fields_set:
            problem = "a run that is conditional on a draft resamples multinomially"
            raise conflict("resampling", problem, "Leave it out, or leave out the draft")
        if self.particles == 1:
            problem = "a single particle beside a draft is the draft"
            raise conflict("particles", problem, "Ask for 2 at least, or leave out the draft")
        return self

    @property
    def needs(self) -> Needs:
        """Return what it takes to serve the request."""
        return replace(
            super().needs if self.result == "vote" else Needs(),
            answers=self.particles * self.runs,
            answers_field="particles",
            least=self.particles,
            in_step=True,
            ignores_temperature=self.on_temperature == "ignore",
            forced=self.draft,
        )

    @property
    def scheme(self) -> Scheme:
        """How particles are resampled."""
        return "multinomial" if self.drafted else self.resampling

    def smc_config(self, horizon: int) -> SMCConfig:
        """The configuration of a run for L = horizon; a single particle needs no blocks."""
        return SMCConfig(
            alpha=self.alpha,
            law=self.law,
            horizon=horizon,
            particles=self.particles,
            block_size=horizon if self.particles == 1 else min(self.block_size, horizon),
            ess_threshold=self.ess_threshold,
            scheme=self.scheme,
            ramp=self.ramp,
        )

    def in_force(self, horizon: int) -> dict[str, Any]:
        """The parameters in force, for the response; of a draft, only whether there is one."""
        hidden = {"sampler", "seed", "on_temperature"}
        hidden |= set(OF_VOTES) if self.result != "vote" else set()
        hidden |= set(OF_SEVERAL) if self.particles == 1 else set()
        shown = self.shown(hidden)
        if self.result == "vote":
            shown["equivalence"] = self.relation
        if self.particles > 1:
            shown["resampling"] = self.scheme
        return {**shown, "max_new_tokens": horizon}
