"""The prose model: a tiny language model for everything that needs prose, roles, judges or many bytes.

A generator of small texts (`lexicon`, `corpus`), a byte-level BPE tokenizer with a chat template
(`tokenizer`), the training script (`train`), an offline check with plain transformers (`evaluate`) and the
trained weights (`model/`). It makes plumbing testable and says nothing about quality. It knows neither SGLang
nor the samplers.
"""
