"""What the demo claims of its figures: each claim can fail, and all of them together seldom do by chance.

With 60 problems per family or more, all hold with a probability of at least 0.95 if the true rates are the
committed ones (results/demo.json): test_claims draws runs at these rates and judges them here. Pure: knows
no server and prints nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from integration_tests.evaluation import Run, mcnemar_p

Runs = Mapping[str, Mapping[str, Run]]
"""Runs by family and sampler."""


def check_claims(runs: Runs) -> dict[str, bool]:
    """Return each claim, in words, and whether it holds of these runs."""
    q, r = runs["Q"], runs["R"]
    power, branch, fast = r["power"], r["branch"], r["fast_exact"]
    return {
        "Q: power at least 0.8": q["power"].accuracy >= 0.8,
        "Q: CoT-decoding at least 0.95": q["cot"].accuracy >= 0.95,
        "Q: plain above low temperature": q["plain"].accuracy > q["lowtemp"].accuracy,
        "R: power at least 0.65": power.accuracy >= 0.65,
        "R: power above best_of at equal decoded tokens": power.accuracy > r["best_of @ power"].accuracy,
        "R: power above vote at equal decoded tokens, p < 0.01": mcnemar_p(power, r["vote @ power"]) < 0.01,
        "R: branch at least 0.9": branch.accuracy >= 0.9,
        "R: branch at no more than 6 decoded tokens per returned one": branch.total("decoded")
        <= 6 * branch.total("returned"),
        "R: branch above best_of at equal decoded tokens, p < 0.01": mcnemar_p(branch, r["best_of @ branch"])
        < 0.01,
        "R: branch above vote at equal decoded tokens, p < 0.01": mcnemar_p(branch, r["vote @ branch"])
        < 0.01,
        "R: particles above best_of at equal decoded tokens": r["smc"].accuracy > r["best_of @ smc"].accuracy,
        "R: particles above vote at equal decoded tokens, p < 0.01": mcnemar_p(r["smc"], r["vote @ smc"])
        < 0.01,
        "R: fast-exact at least 0.65": fast.accuracy >= 0.65,
        "R: fast-exact at no more than 1.5 steps per returned token": fast.total("depth")
        <= 1.5 * fast.total("returned"),
        "S: perfect at least 0.85": runs["S"]["perfect"].accuracy >= 0.85,
    }
