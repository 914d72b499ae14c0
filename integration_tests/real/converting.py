"""Makes a folder of Hugging Face's format, which SGLang serves, out of a GGUF file, by transformers.

Weights are dequantised once and stored in bfloat16; whoever serves them in float32 computes with exactly
these numbers. Needs the extra `real` (accelerate and gguf).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from sglang_power.errors import HostError
from transformers import AutoModelForCausalLM, AutoTokenizer

__all__ = ["convert"]


def convert(gguf: Path, folder: Path, bos: str | None) -> None:
    """Write weights, configuration and tokenizer.

    Args:
        gguf: the file.
        folder: exists; takes what is written.
        bos: the token that the tokenizer is to put before every prompt and forgets, if any.

    Raises:
        HostError: the tokenizer that was written does not begin a prompt with `bos`.
        ImportError: accelerate or gguf is missing.
    """
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    _forget_quantization(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if bos is not None:
        _begin_with(bos, int(tokenizer.convert_tokens_to_ids(bos)), folder)


def _forget_quantization(model: Any) -> None:
    """Make it a model like any other: transformers 5 will not save one that it takes for quantised, and
    SGLang would look for GGUF weights where the configuration speaks of them."""
    model.hf_quantizer = None
    del model.config.quantization_config


def _begin_with(bos: str, bos_id: int, folder: Path) -> None:
    """Have the written tokenizer put `bos` before every text."""
    path = folder / "tokenizer.json"
    told = json.loads(path.read_text())
    first, text = {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    told["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, first, second],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }
    path.write_text(json.dumps(told, ensure_ascii=False))
    ids = AutoTokenizer.from_pretrained(folder)("a")["input_ids"]
    if ids[0] != bos_id or ids.count(bos_id) != 1:
        raise HostError(f"the converted tokenizer makes {ids} of 'a', which does not begin with {bos} once")
