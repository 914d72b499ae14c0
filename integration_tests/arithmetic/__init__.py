"""A built-in task that was not made to flatter: multi-digit addition and multiplication, worked out.

Unlike `pivot`, whose texts mix work and guesses so that a mechanism shows, every text here works in one way
(a scratchpad, arXiv 2112.00114), and the model errs for want of training alone. `problems` is the language,
`tokenizer` and `train` make the model; `integration_tests/tasks` makes a task of held-out problems.
"""
