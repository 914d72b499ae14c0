"""How far a served chain is from p^alpha: `sglang-power diagnose`, by pairs of lagged coupled chains.

`algorithms.coupling` says what a pair does, `serving` has a running server do it, one request per step;
`bounds` and `convergence` compute, `report` holds and words what came of it, `session` runs it all. Knows
routes and the reports of answers, nothing of SGLang's internals or of the command line.
"""
