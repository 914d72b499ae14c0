"""The package's algorithms against any remote SGLang, over HTTP.

    async with Remote("http://127.0.0.1:30000") as remote:
        engine = await remote.engine("Q7+3*2-8:", config=config)
        result = await Chain(engine, config, Key(1), Budget(100_000)).run()

A server without the plugin states log probabilities at temperature 1, and the most likely tokens with them.
What follows from these exactly is offered; everything else is refused before any token (`capabilities`):

    laws         p itself (kappa = 1), and greedy (top_k = 1 at kappa = 1)
    rows         log_p, log_q, log_z, gap, margin; entropy and varentropy are NaN
    chains       uniform cuts, proposals at tau = 1, drafts; a lost proposal runs to its end
    selection    cot, vote, best_of; branch with the trigger "ratio" alone
    stops        end-of-sequence and stop token ids; a stop string needs text, so there are none

Draws repeat for a seed only where the server runs with --enable-deterministic-inference.
"""

from sglang_power.engines.http.capabilities import check_chain
from sglang_power.engines.http.connection import RemoteOptions
from sglang_power.engines.http.remote import HttpEngine, Remote

__all__ = ["HttpEngine", "Remote", "RemoteOptions", "check_chain"]
