"""What an answer says, and choosing among several: extraction, equivalence, classes, votes.

The flow of one request with N samples: `spelled` (text and the characters of each token) -> an `Extractor`
(value and characters) -> `build_classes` (equal answers) -> `choose` (by count, weight or confidence).
Knows neither SGLang nor HTTP; only `mathematics` starts processes.

Adding an equivalence: an entry point of the group `sglang_power.equivalences`; see `registry`.
"""

from sglang_power.answers.classes import (
    AnswerClass,
    Choice,
    Classes,
    GrowingClasses,
    Undecided,
    Unreadable,
    build_classes,
    choose,
    choose_by_delta,
)
from sglang_power.answers.continuation import CONTINUATION, Aligned, Stem, align, stem
from sglang_power.answers.equivalence import (
    DIFFERENT,
    EQUAL,
    ComparisonOutcome,
    Keyed,
    Reads,
    Relation,
    Verdict,
    undecided,
    unreadable,
)
from sglang_power.answers.extraction import (
    EXTRACTORS,
    Extracted,
    Extraction,
    Extractor,
    Regex,
    TimedOut,
    value_of,
)
from sglang_power.answers.judging import (
    LLM,
    Asker,
    LlmRelation,
    disarmed,
    right_question,
    same_question,
)
from sglang_power.answers.registry import equivalence, equivalences
from sglang_power.answers.spans import Spelled, spelled
from sglang_power.answers.weights import effective_sample_size, power_weights, uniform_weights

__all__ = [
    "CONTINUATION",
    "DIFFERENT",
    "EQUAL",
    "EXTRACTORS",
    "LLM",
    "Aligned",
    "AnswerClass",
    "Asker",
    "Choice",
    "Classes",
    "ComparisonOutcome",
    "Extracted",
    "Extraction",
    "Extractor",
    "GrowingClasses",
    "Keyed",
    "LlmRelation",
    "Reads",
    "Regex",
    "Relation",
    "Spelled",
    "Stem",
    "TimedOut",
    "Undecided",
    "Unreadable",
    "Verdict",
    "align",
    "build_classes",
    "choose",
    "choose_by_delta",
    "disarmed",
    "effective_sample_size",
    "equivalence",
    "equivalences",
    "power_weights",
    "right_question",
    "same_question",
    "spelled",
    "stem",
    "undecided",
    "uniform_weights",
    "unreadable",
    "value_of",
]
