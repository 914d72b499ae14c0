"""The built-in tasks of `sglang-power eval`: a file of problems and a card each."""
