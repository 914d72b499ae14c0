"""`power_choices`: what `sgl.select` picks, drawn from p^alpha over the choices.

Pure, but for the interface: SGLang hands over the log probabilities of each choice's tokens.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sglang_power.frontend._lang import ChoicesDecision, ChoicesSamplingMethod
from sglang_power.frontend.laws import draw
from sglang_power.frontend.settings import ChoiceSettings, parsed
from sglang_power.rng import Purpose, fresh_seed


class PowerChoices(ChoicesSamplingMethod):  # type: ignore[misc]  # sglang is untyped
    """A draw with P(choice) proportional to p(choice)^alpha, p being that of all its tokens.

    Args:
        alpha: exponent, >= 0; 1 draws from the model, 0 evenly.
        seed: of the draw; the same choices with the same log probabilities give the same draw.
    """

    def __init__(self, alpha: float, seed: int) -> None:
        self.alpha, self.seed = alpha, seed

    def __call__(
        self,
        *,
        choices: list[str],
        normalized_prompt_logprobs: list[float],
        input_token_logprobs: list[list[Any]],
        output_token_logprobs: list[list[Any]],
        unconditional_token_logprobs: list[list[Any]] | None = None,  # noqa: ARG002  (SGLang's interface)
    ) -> Any:
        """Return the decision in the form of SGLang's methods, with what it was drawn from."""
        log_p = [
            math.fsum(token[0] for token in choice if token[0] is not None) for choice in input_token_logprobs
        ]
        index = draw(self.alpha * np.array(log_p, dtype=np.float64), self.seed, Purpose.CHOICE)
        meta = {
            "normalized_prompt_logprobs": normalized_prompt_logprobs,
            "input_token_logprobs": input_token_logprobs,
            "output_token_logprobs": output_token_logprobs,
            "power": {"alpha": self.alpha, "seed": self.seed, "log_p": log_p},
        }
        return ChoicesDecision(decision=choices[index], meta_info=meta)


def power_choices(alpha: float | None = None, seed: int | None = None) -> PowerChoices:
    """For `sgl.select(name, choices, choices_method=sp.power_choices(alpha=4.0, seed=1))`.

    Args:
        alpha, seed: see `PowerChoices`; 4 and a fresh seed where absent.

    Raises:
        RequestError: an argument is wrong.
    """
    settings = parsed(ChoiceSettings, {"alpha": alpha, "seed": seed})
    return PowerChoices(settings.alpha, fresh_seed() if settings.seed is None else settings.seed)
