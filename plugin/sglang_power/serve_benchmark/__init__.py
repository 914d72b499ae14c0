"""The benchmark of serving: `sglang-power bench serve`, every way to an answer side by side on one server.

A cell is a row of the grid (a sampler with its parameters) on a workload under a load; an asker gets one
answer, a load asks for many, and figures are made of what came back.

`workloads` holds prompts and what is right, `grid` the rows, `askers` what SGLang and the plugin serve over
a `connection`, `naive` and `published` the controls over `metropolis`, `loads` the clients at once, `passes`
the server's own count, `figures` and `record` the JSON, `targets` the verdicts, `page` and `plots` what is
shown; `driver` runs the cells, and `session` writes the files. Knows routes and reports, nothing of SGLang's
internals or of the command line.
"""
