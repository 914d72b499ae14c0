"""The evaluation of a served model: `sglang-power eval`, samplers on tasks with known answers.

A task is a list of items; an arm is a sampler with its parameters; an answer is one item asked of one arm.

`items` is what is asked, `catalogue`, `formats` and `data_sets` where it comes from, `prompts` how it is put;
`arms` says what is asked for, `asking` asks over OpenAI's API, `grading` and `sandbox` say whether an answer
is right, `records` and `folder` keep it, `driver` runs it all, `session` is one run from settings to files.
What was kept becomes a report: `table`, `statistics` and `controls` compute (pure), `report` puts `results`
together, `wording`, `plots` and `page` show them. Knows the API and the reports of answers, nothing of
SGLang's internals or of the command line.
"""
