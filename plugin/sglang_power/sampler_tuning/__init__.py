"""Picks a sampler and its parameters on a user's problems: `sglang-power tune sampler`.

`grid` says which candidates there are, `halving` which of them are asked what within a budget of tokens
(pure), `session` asks by the parts of `evaluation`, `outcome` holds what came of it and writes the preset.
"""
