"""What the records of an experiment say: units, intervals, verdict, report. Needs the extra `[ab]`.

`reading` and `units` turn lines of logs into one row per unit (`observations`); `sequences`, `srm`, `effects`
and `switchback` turn rows into numbers, `verdict` numbers into a decision; `report` puts all of it into one
document (`results`), which `show` prints and `page` draws. Nothing here runs inside a server.
"""
