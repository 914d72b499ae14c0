"""The pivot model: a tiny language model whose likelihood rewards work and whose first token does not.

Two families of synthetic arithmetic problems (`problems`), a character tokenizer (`tokenizer`), the
training script (`train`), an offline check with plain transformers (`evaluate`) and the trained weights
(`model/`). It shows the mechanism of power sampling, not the quality of large models. It knows neither
SGLang nor the samplers.
"""
