"""What of SGLang works with the plugin's samplers, as a table: every cell names its test or its refusal.

Owns the rows. Reasons of refusals are read from the code that refuses, so that the table cannot say others.
`python -m integration_tests.support --write` renews plugin/docs/support.md; a test compares the two, and
looks for every test that is named. Knows no server.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sglang_power.sglang_host.tokenizer import support

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "plugin" / "docs" / "support.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"

TESTS = "integration_tests/tests"
LAWS = "integration_tests/law_tests"


@dataclass(frozen=True)
class Works:
    """It works; a test shows it.

    Args:
        test: file and function, `FILE::FUNCTION` below the repository.
        but: what does not, in words.
    """

    test: str
    but: str = ""

    def __str__(self) -> str:
        file, name = self.test.split("::")
        told = name.removeprefix("test_").replace("_", " ")
        return f"works: [{told}](../../{file})" + (f"; {self.but}" if self.but else "")


@dataclass(frozen=True)
class Refused:
    """A 400 that names the field.

    Args:
        reason: what it says.
    """

    reason: str

    def __str__(self) -> str:
        return f"refused: {self.reason}"


@dataclass(frozen=True)
class Same:
    """As for SGLang's own answers, which it is part of: the plugin leaves it alone."""

    def __str__(self) -> str:
        return "SGLang's own"


Cell = Works | Refused | Same


@dataclass(frozen=True)
class Feature:
    """One row.

    Args:
        name: of the feature.
        whole: samplers of whole answers, all of them unless `pair` says otherwise.
        pair: `kl_guided`, whose answers have two prompts; None: as the others.
        policies: per-step policies, and statistics of plain answers.
        fields: of requests that the cells speak of.
    """

    name: str
    whole: Cell
    policies: Cell = Same()
    pair: Cell | None = None
    fields: tuple[str, ...] = ()

    def cells(self) -> list[str]:
        """Return the row's cells as text."""
        pair = "the same" if self.pair is None else str(self.pair)
        return [self.name, str(self.whole), pair, str(self.policies)]


def _works(file: str, name: str, but: str = "") -> Works:
    return Works(f"{TESTS}/{file}.py::test_{name}", but)


def _law(file: str, name: str, but: str = "") -> Works:
    return Works(f"{LAWS}/{file}.py::test_{name}", but)


def _field(name: str) -> Refused:
    """The refusal of a request's field, in the code's words."""
    reason = support._SAMPLING[name][1] if name in support._SAMPLING else support._REQUEST[name]
    return Refused(f"`{name}`, {reason}")


TWO_PROMPTS = "it has two prompts"

FEATURES = [
    Feature(
        "/generate, completions, chat, streams, `n`",
        _works("test_contract", "the_contract"),
        _works("test_policies_server", "openai_streams_carry_the_report_on_the_last_chunk"),
    ),
    Feature(
        "other routes (Ollama, /v1/responses, /v1/messages, /vertex_generate)",
        _works("test_routes_server", "every_route_runs_the_sampler_that_is_named"),
    ),
    Feature("the Engine, in process", _works("test_entry_points", "engine_lists_and_n")),
    Feature("lists of prompts", _works("test_entry_points", "a_list_may_mix_power_and_plain_prompts")),
    Feature("abort by id", _works("test_abort", "abort_by_the_clients_id_ends_all_of_its_answers")),
    Feature("clients that leave", _works("test_abort", "a_client_that_disconnects_stops_its_chain")),
    Feature("stop strings, across cuts", _works("test_entry_points", "stop_strings_hold_across_cuts")),
    Feature("`stop_regex`", _field("stop_regex"), fields=("stop_regex",)),
    Feature(
        "log probabilities, alternatives",
        _works("test_alternatives_server", "alternatives_are_of_the_row_after_bias_and_masks"),
    ),
    Feature(
        "`logit_bias`",
        _works("test_entry_points", "logit_bias_is_part_of_the_base_law"),
        _works("test_policies_server", "penalties_and_biases_come_before_the_policy"),
    ),
    Feature(
        "`min_new_tokens`",
        _works("test_support_matrix", "min_new_tokens_is_counted_once_whatever_was_retracted"),
    ),
    Feature(
        "grammars: `json_schema`, `regex`, `ebnf`, `structural_tag`, `response_format`",
        _law("test_grammar_law_server", "answers_follow_the_power_of_the_masked_law"),
        _works("test_policies_server", "no_policy_leaves_a_grammar"),
        pair=Refused(TWO_PROMPTS),
    ),
    Feature(
        "`frequency_penalty`, `presence_penalty`, `repetition_penalty`",
        _law("test_penalty_law_server", "answers_follow_the_power_of_the_penalised_law"),
        _works("test_policies_server", "penalties_and_biases_come_before_the_policy"),
        pair=Refused(TWO_PROMPTS),
    ),
    Feature(
        "`custom_logit_processor`",
        _field("custom_logit_processor"),
        _field("custom_logit_processor"),
        fields=("custom_logit_processor",),
    ),
    Feature(
        "`tools` on chat, `--tool-call-parser`",
        _works(
            "test_tools_server",
            "calls_of_tools_in_the_answers_of_every_sampler",
            "refused on other routes: they read calls off streams",
        ),
    ),
    Feature(
        "`--reasoning-parser`",
        _works("test_weights_server", "reasoning_is_taken_out_of_answers_as_out_of_sglangs_own"),
    ),
    Feature("`max_thinking_tokens`", _field("max_thinking_tokens"), fields=("max_thinking_tokens",)),
    Feature("LoRA adapters", _field("lora_path"), fields=("lora_path",)),
    Feature(
        "weights updated meanwhile",
        _works(
            "test_weights_server",
            "an_update_of_the_weights_ends_a_chain",
            "a 503 that says so, never a mixed answer; behind several tokenizer workers only updates with a "
            "`weight_version` are seen by all",
        ),
    ),
    Feature(
        "/pause_generation, /continue_generation", _works("test_weights_server", "a_pause_changes_no_answer")
    ),
    Feature("SIGTERM", _works("test_abort", "sigterm_lets_chains_finish_and_leaves_no_process")),
    Feature("sessions", _field("session_params"), fields=("session_params",)),
    Feature(
        "images, videos, audio, `input_embeds`",
        Refused("multimodal prompts are not supported yet"),
        fields=("image_data", "video_data", "audio_data", "input_embeds", "positional_embed_overrides"),
    ),
    Feature(
        "`beam_width`, OpenAI's `best_of`, watermarks",
        Refused("other samplers, other laws"),
        Refused("`beam_width`, `watermark`"),
        fields=("beam_width", "best_of", "watermark"),
    ),
    Feature(
        "outputs of one pass (hidden states, entropies, sampling masks, expert routes, ...)",
        Refused("not defined for an answer of many passes"),
        fields=(
            "return_hidden_states",
            "return_routed_experts",
            "return_indexer_topk",
            "return_sampling_mask",
            "return_entropy",
            "return_flat_raw_top_logprobs",
            "return_flat_raw_output_top_logprobs",
        ),
    ),
    Feature(
        "pages of 1 and 16 tokens",
        _works("test_support_matrix", "forks_recompute_what_the_page_size_predicts"),
    ),
    Feature(
        "chunked prefill, retraction",
        _works("test_support_matrix", "log_p_survives_retraction_and_chunks"),
        _works("test_support_matrix", "policies_with_a_memory_survive_retraction"),
        pair=_works("test_support_matrix", "pairs_recover_from_retraction"),
    ),
    Feature(
        "`--tokenizer-worker-num`, `--dp-size`",
        _works("test_support_matrix", "both_tokenizer_workers_serve_power"),
    ),
    Feature("metrics", _works("test_entry_points", "a_power_request_is_one_request_in_the_metrics")),
    Feature("prefill/decode disaggregation", _field("bootstrap_room"), fields=("bootstrap_room",)),
]


def server_features() -> Iterator[tuple[str, str]]:
    """Yield what a server may not be started with, and why, in the code's words."""
    for flag, _, reason in support._SERVER:
        yield f"`--{flag.replace('_', '-')}`", reason


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table's lines."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def rendered() -> str:
    """Return what stands between the page's marks."""
    head = ["feature", "samplers of whole answers", "`kl_guided`", "per-step policies"]
    requests = table(head, [feature.cells() for feature in FEATURES])
    servers = table(
        ["a server started with", "serves no sampler, policies included: 400"], list(server_features())
    )
    return "\n".join([*requests, "", *servers])


def committed() -> str:
    """Return what stands there now."""
    found = re.search(f"{BEGIN}\n(.*)\n{END}", PAGE.read_text(), re.DOTALL)
    assert found is not None, f"{PAGE} has no table"
    return found[1]


def main() -> None:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="renew plugin/docs/support.md")
    if not parser.parse_args().write:
        print(rendered())
        return
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{rendered()}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
