"""Samplers of whole answers: what each awaits from an engine, and what they share.

Knows neither SGLang nor HTTP; `sglang_host` brings the engine, the reader and whoever is asked for a score.
"""
