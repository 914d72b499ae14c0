"""Relations between answers: rows that are equal, different or undecided, laws, and how others register.

Deterministic. Error rate 0.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang_power.answers import (
    DIFFERENT,
    EQUAL,
    ComparisonOutcome,
    Relation,
    Verdict,
    equivalence,
    equivalences,
)
from sglang_power.answers import undecided as undecided_because
from sglang_power.answers.equivalence import NORMALISED_WITHOUT_ARTICLES, FunctionRelation, normal_form
from sglang_power.errors import ConfigError, RequestError

quick = settings(derandomize=True, database=None, deadline=None)

KEYED = ("exact", "normalised", "number", "choice")


def compare(relation: Relation, a: str, b: str) -> ComparisonOutcome:
    return asyncio.run(relation.same(a, b)).outcome


SAME = [
    ("exact", "a b", "a b"),
    ("normalised", "Paris", " *paris*. "),
    ("normalised", "“Paris”", "'PARIS'!"),
    ("normalised", "a  b\n c", "A b c"),
    ("normalised", "ﬁn Ⅳ", "fin iv"),
    ("normalised", "Straße", "STRASSE"),
    ("normalised", "café", "cafe\u0301"),
    ("normalised", "ß\u0301", "s\u015b"),
    ("number", "0.5", "1/2"),
    ("number", "50%", "1/2"),
    ("number", ".50", "50 %"),
    ("number", "$1,234.50", "1234.5"),
    ("number", "1e3", "1000."),
    ("number", "-0", "0"),
    ("number", "$5$", "5"),
    ("number", "0.1", "1/10"),
    ("number", "1,00,000", "100 000"),
    ("number", "1.234,5", "1,234.5"),
    ("number", "\u20135", "\u22125"),
    ("number", "\uff13\uff14", "\u0663\u0664"),
    ("number", "50 percent", "\u00bd"),
    ("number", "2 1/2", "2.5"),
    ("choice", "B", "(b)."),
    ("choice", "**B**", "B)"),
]

OTHER = [
    ("exact", "a", "A"),
    ("exact", "0.5", "0.50"),
    ("normalised", "the Nile", "Nile"),
    ("normalised", "-5", "5"),
    ("normalised", "5%", "5"),
    ("normalised", "5!", "5"),
    ("normalised", "10²", "102"),
    ("normalised", "H₂", "H2"),
    ("normalised", "[0,1)", "(0,1]"),
    ("normalised", "C++", "C"),
    ("normalised", ".", "!"),
    ("number", "1/3", "0.3333333333333333"),
    ("number", "9007199254740993", "9007199254740992"),
    ("number", "50%", "50"),
    ("number", "5", "-5"),
    ("number", "5", "\u20135"),
    ("number", "50%", "50 000"),
    ("choice", "A", "B"),
]

UNDECIDED = [
    ("number", "five", "5", "'five' is not a number"),
    ("number", "5", "5 km", "'5 km' is not a number"),
    ("number", "0,5", "1/2", "'0,5' is not a number"),
    ("number", "5 7/2", "7/2", "'5 7/2' is not a number"),
    ("number", "1/0", "1", "'1/0' is not a number"),
    ("number", "12/25/2024", "2024", "'12/25/2024' is not a number"),
    ("choice", "B", "BC", "'BC' is not an option letter"),
]


@pytest.mark.parametrize(("name", "a", "b"), SAME)
def test_the_same(name: str, a: str, b: str) -> None:
    assert compare(equivalence(name), a, b) is compare(equivalence(name), b, a) is ComparisonOutcome.EQUAL


@pytest.mark.parametrize(("name", "a", "b"), OTHER)
def test_not_the_same(name: str, a: str, b: str) -> None:
    assert compare(equivalence(name), a, b) is compare(equivalence(name), b, a) is ComparisonOutcome.DIFFERENT


@pytest.mark.parametrize(("name", "a", "b", "reason"), UNDECIDED)
async def test_undecided_with_a_reason(name: str, a: str, b: str, reason: str) -> None:
    for pair in ((a, b), (b, a)):
        assert await equivalence(name).same(*pair) == undecided_because(reason)


def test_articles_are_dropped_on_request_only() -> None:
    assert compare(NORMALISED_WITHOUT_ARTICLES, "The Nile.", "nile") is ComparisonOutcome.EQUAL
    assert normal_form("an answer to a thing", drop_articles=True) == "answer to thing"
    assert normal_form("A", drop_articles=True) == "a", "an answer that is an article stays"


answers = st.one_of(
    st.text(max_size=12),
    st.text("aAbB \"'.!*²5", max_size=8),
    st.from_regex(r"[-$]?[0-9]{1,3}([./][0-9]{1,2})?%?", fullmatch=True),
)


@given(st.sampled_from(KEYED), answers, answers, answers)
@quick
def test_reflexive_symmetric_and_transitive(name: str, a: str, b: str, c: str) -> None:
    relation = equivalence(name)
    assert compare(relation, a, a) is ComparisonOutcome.EQUAL
    assert compare(relation, a, b) is compare(relation, b, a)
    if compare(relation, a, b) is compare(relation, b, c) is ComparisonOutcome.EQUAL:
        assert compare(relation, a, c) is ComparisonOutcome.EQUAL


@given(st.one_of(st.text(), answers))
@quick
def test_a_normal_form_is_its_own_normal_form(text: str) -> None:
    once = normal_form(text)
    assert normal_form(once) == once


# --- callables ----------------------------------------------------------------------------------------


async def later(a: str, b: str) -> bool:
    return a.lower() == b.lower()


def raising(a: str, b: str) -> bool:
    raise ValueError(f"{a}, {b}")


@pytest.mark.parametrize(
    ("function", "verdict"),
    [
        (lambda a, b: a.lower() == b.lower(), EQUAL),
        (lambda a, b: np.bool_(a == b), DIFFERENT),
        (lambda _a, _b: undecided_because("asleep"), undecided_because("asleep")),
        (later, EQUAL),
        (raising, undecided_because("ValueError: a, A")),
        (lambda _a, _b: None, undecided_because("the relation returned None, neither bool nor Verdict")),
    ],
)
async def test_a_callable_is_a_relation(
    function: Callable[[str, str], bool | Verdict], verdict: Verdict
) -> None:
    assert await FunctionRelation(function).same("a", "A") == verdict
    assert await FunctionRelation(function).same("a", "a") == EQUAL


# --- the registry -------------------------------------------------------------------------------------

Install = Callable[[str, str], None]

GROUP = "sglang_power.equivalences"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a distribution of one module, equivalence_<name>, with one entry point `name`."""

    def install(name: str, source: str) -> None:
        module = f"equivalence_{name}"
        (tmp_path / f"{module}.py").write_text(source)
        information = tmp_path / f"{module}-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {module}:same\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        equivalences.cache_clear()

    yield install
    equivalences.cache_clear()


ASYNCHRONOUS = """
from sglang_power.answers import EQUAL

class Judge:
    async def same(self, a, b):
        return EQUAL

same = Judge()
"""


@pytest.mark.parametrize("source", ["def same(a, b): return a[0] == b[0]", ASYNCHRONOUS])
async def test_an_equivalence_of_another_distribution_is_found(install: Install, source: str) -> None:
    install("initials", source)
    assert list(equivalences())[-1] == "initials"
    assert await equivalence("initials").same("ab", "ac") == EQUAL


@pytest.mark.parametrize(
    ("name", "source", "problem"),
    [
        ("absent", "", "same"),
        ("raises", "raise RuntimeError('no such luck')", "no such luck"),
        ("value", "same = 3", "neither a callable"),
        ("kind", "class same:\n    async def same(self, a, b): ...", "neither a callable"),
        ("number", "def same(a, b): return True", "the name 'number' is in use"),
        ("llm", "def same(a, b): return True", "the name 'llm' is in use"),
    ],
)
def test_a_broken_entry_point_is_named(install: Install, name: str, source: str, problem: str) -> None:
    install(name, source)
    with pytest.raises(ConfigError, match=f"entry point {name} = equivalence_{name}:same .*{problem}"):
        equivalences()


def test_an_unknown_name_is_a_request_error_that_lists_the_known_ones() -> None:
    with pytest.raises(RequestError, match="exact, normalised, number, choice, math") as caught:
        equivalence("similar", field="vote.equivalence")
    assert (caught.value.field, caught.value.value) == ("vote.equivalence", "similar")
