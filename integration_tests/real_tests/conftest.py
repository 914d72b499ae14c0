"""SmolLM2 on a server in float32, and the same weights in transformers: the reference.

`make test-real` prepares the folder first; without it these tests fail at once, and say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from integration_tests import server
from integration_tests.helpers import preloaded
from integration_tests.real.catalogue import SMOLLM2
from integration_tests.real.folders import fault
from integration_tests.real.preparing import folder_of, recipe_of
from integration_tests.real.tour import served_spec
from integration_tests.server import Server


@dataclass(frozen=True)
class Reference:
    """The model as transformers has it, in float32 on the CPU.

    Args:
        tokenizer, network: of the folder that the server serves.
    """

    tokenizer: Any
    network: Any

    @torch.no_grad()
    def log_p(self, prompt: list[int], answer: list[int]) -> list[float]:
        """Return the log probability of each token of an answer, in nats, at temperature 1."""
        logits = self.network(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        rows = logits.float().log_softmax(-1)
        found: list[float] = rows.gather(-1, torch.tensor(answer)[:, None])[:, 0].tolist()
        return found

    def template(self, messages: list[dict[str, str]]) -> list[int]:
        """Return the ids of a chat, up to where the assistant begins."""
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids


@pytest.fixture(scope="session")
def folder() -> Path:
    """The folder of SmolLM2."""
    where = folder_of(SMOLLM2.name)
    if (problem := fault(where, recipe_of(SMOLLM2))) is not None:
        raise RuntimeError(f"{where}: {problem}. Run these tests by `make test-real`")
    return where


@pytest.fixture(scope="session")
def reference(folder: Path) -> Reference:
    """The weights in transformers."""
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Reference(AutoTokenizer.from_pretrained(folder), network)


@pytest.fixture(scope="session")
def smollm2(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server, in float32 also where there is a GPU."""
    assert folder.is_dir()
    spec = served_spec(SMOLLM2)
    spec = replace(spec, arguments=[*spec.arguments, "--dtype", "float32"])
    with server.running(spec, tmp_path_factory.mktemp("real"), preloaded.fork) as running:
        yield running
