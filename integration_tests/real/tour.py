"""`python -m integration_tests.real.tour smollm2`: serve a prepared model, ask it once per sampler, and stop.

Every answer's sampler is checked by its report; the first one that another sampler answered ends the tour.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import openai
from sglang_power.errors import PowerError

from integration_tests.real.asking import PROMPTS, QUESTIONS, Answer, Question, ask
from integration_tests.real.catalogue import MODELS, RealModel
from integration_tests.real.folders import fault
from integration_tests.real.preparing import folder_of, recipe_of
from integration_tests.server import ServerSpec, running

__all__ = ["PRESETS", "served_spec"]

PRESETS: Final = Path(__file__).parents[2] / "configs" / "fast-exact.yaml"
TIMEOUT_S: Final = 600.0
"""Of one answer; the longest takes less than a minute on one core."""


def served_spec(model: RealModel) -> ServerSpec:
    """Return what serves a prepared model, with the presets of configs/fast-exact.yaml."""
    environment = {"SGLANG_POWER_CONFIG": str(PRESETS)}
    arguments = ["--enable-metrics", "--enable-cache-report", "--context-length", "4096"]
    return ServerSpec(folder_of(model.name), model.name, arguments, environment)


def tour(model: RealModel) -> None:
    """Print one answer per sampler.

    Raises:
        PowerError: another sampler ran than the one that was asked for.
    """
    with tempfile.TemporaryDirectory() as logs:
        print(f"starting SGLang with {model.name} (a minute) ...", flush=True)
        with running(served_spec(model), Path(logs)) as server:
            for name, text in PROMPTS[model.chat].items():
                print(f"prompt, {name}: {text!r}", flush=True)
            client = openai.OpenAI(
                base_url=f"{server.url}/v1", api_key="none", timeout=TIMEOUT_S, max_retries=0
            )
            with client:
                for question in QUESTIONS:
                    began = time.perf_counter()
                    answer = ask(client, model, question)
                    print(_line(question, answer, time.perf_counter() - began), flush=True)
    print("the server has ended", flush=True)


def _line(question: Question, answer: Answer, seconds: float) -> str:
    cost = f"{seconds:6.1f} s"
    if answer.report is not None:
        told = answer.report
        cost += f", {told['decoded_tokens']:4} tokens decoded, depth {told['depth']:3}, law {told['law']}"
    return f"\n{question.label} ({question.prompt}) {cost.strip()}\n  {answer.text!r}"


def main(argv: Sequence[str] | None = None) -> int:
    """Show the model that is named; 1 where it is not prepared or a sampler did not run."""
    parser = argparse.ArgumentParser(description="Serve a prepared model and ask it once per sampler.")
    parser.add_argument("model", choices=sorted(MODELS))
    model = MODELS[parser.parse_args(argv).model]
    if (problem := fault(folder_of(model.name), recipe_of(model))) is not None:
        print(f"{folder_of(model.name)}: {problem}. Run `make real MODEL={model.name}`", file=sys.stderr)
        return 1
    try:
        tour(model)
    except (PowerError, openai.APIError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
