"""Everything that needs a real SGLang server: tests, the demo, benchmarks, and the built-in model."""
