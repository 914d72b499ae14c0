"""SGLang programs with the frontend: short examples, each of which runs against any server with the plugin.

    python -m integration_tests.programs.self_consistency --url http://127.0.0.1:30000

`make serve` starts a server with the pivot model, whose problems are the defaults.
"""
