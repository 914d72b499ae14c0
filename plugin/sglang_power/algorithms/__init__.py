"""The mathematics: pure functions without I/O, clock or global random state.

May import `types`, `errors` and `rng` only. `engine` holds the protocol of what continues sequences.
"""
