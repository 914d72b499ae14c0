"""A/B tests of samplers: who gets which arm, what is recorded, and what the records say.

`model` is an experiment's file, `records` a line of its log; both are all that the two halves share.
The server's half assigns and writes (`flags`, `assignment`, `catalogue`, `enrolling`, `log`); the analyst's
half (`analysis`, which needs the extra `[ab]`) reads, and never runs inside a server.
"""
