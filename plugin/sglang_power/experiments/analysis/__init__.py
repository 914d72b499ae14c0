"""What the records of an experiment say: units, intervals, verdict, report. Needs the extra `[ab]`.

    reading    files -> lines
    requests   lines -> enrolled requests, joined with how they ended and what was said; what does not count
    units      requests -> one row per unit (`observations`)
    sequences, asymptotic, enough, srm, effects, switchback    rows -> numbers
    verdict    numbers -> a decision
    report     all of it, as one document (`results`), with what `summary` saw of each arm
    show, page, plots, wording    the document for people
    simulate, traffic    the same statistics on invented units
    ramp       reports -> the next phase, or back
    ingest     outcomes that were measured elsewhere -> lines

Nothing here runs inside a server.
"""
