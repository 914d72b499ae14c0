"""A type checker for PromQL: which labels an expression's series have, given those of the metrics.

It refuses what Prometheus would accept and answer with nothing: names that nobody exports, labels that a
metric does not have, sides of an operator that can never match. Written for the operators that the project's
dashboards and alerts use; it refuses others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any

import promql_parser as promql

TARGET = frozenset({"instance", "job"})
"""Labels that every scraped series has."""

Labels = frozenset[str]


def labels_of(text: str, metrics: Mapping[str, Set[str]]) -> Labels:
    """Labels of the series that an expression gives.

    Args:
        text: PromQL.
        metrics: name of every sample that exists -> its labels.

    Raises:
        ValueError: it cannot be parsed, or its names or labels do not exist or do not fit.
    """
    labels = _labels(promql.parse(text), metrics)
    if labels is None:
        raise ValueError(f"a number, not series: {text}")
    return labels


def matchers_of(text: str) -> Iterator[tuple[str, str, str]]:
    """Metric, label and pattern of every matcher in an expression."""
    found: list[promql.VectorSelector] = []

    def visit(part: Any) -> None:
        if isinstance(part, promql.VectorSelector):
            found.append(part)
        elif isinstance(part, promql.MatrixSelector):
            found.append(part.vector_selector)

    promql.walk(promql.parse(text), visit)
    for selector in found:
        for matcher in selector.matchers.matchers:
            yield str(selector.name), matcher.name, matcher.value


def _labels(part: Any, metrics: Mapping[str, Set[str]]) -> Labels | None:
    """None for a number."""
    if isinstance(part, promql.NumberLiteral):
        return None
    if isinstance(part, promql.VectorSelector):
        return _selected(part, metrics)
    if isinstance(part, promql.MatrixSelector):
        return _selected(part.vector_selector, metrics)
    if isinstance(part, promql.ParenExpr):
        return _labels(part.expr, metrics)
    if isinstance(part, promql.AggregateExpr):
        return _aggregated(part, metrics)
    if isinstance(part, promql.Call):
        return _called(part, metrics)
    if isinstance(part, promql.BinaryExpr):
        return _combined(part, metrics)
    raise ValueError(f"not known here: {part.prettify()}")


def _selected(selector: Any, metrics: Mapping[str, Set[str]]) -> Labels:
    if selector.name not in metrics:
        raise ValueError(f"nobody exports {selector.name}")
    labels = TARGET | metrics[selector.name]
    _check({matcher.name for matcher in selector.matchers.matchers}, labels, selector)
    return labels


def _aggregated(part: Any, metrics: Mapping[str, Set[str]]) -> Labels:
    inner = _labels(part.expr, metrics)
    if part.modifier is None or part.modifier.type != promql.AggModifierType.By:
        raise ValueError(f"say which labels stay: {part.prettify()}")
    _check(part.modifier.labels, inner or frozenset(), part)
    return frozenset(part.modifier.labels)


def _called(part: Any, metrics: Mapping[str, Set[str]]) -> Labels | None:
    inner = _labels(part.args[-1], metrics)
    if part.func.name != "histogram_quantile":
        return inner
    _check(["le"], inner or frozenset(), part)
    return (inner or frozenset()) - {"le"}


def _combined(part: Any, metrics: Mapping[str, Set[str]]) -> Labels | None:
    left, right = _labels(part.lhs, metrics), _labels(part.rhs, metrics)
    if left is None or right is None:
        return right if left is None else left
    matching = part.modifier.matching if part.modifier else None
    if matching is None:
        ignored: Set[str] = frozenset()
    elif matching.type == promql.LabelModifierType.Exclude:
        ignored = frozenset(matching.labels)
    else:
        raise ValueError(f"not known here: {part.prettify()}")
    if left - ignored != right - ignored:
        raise ValueError(f"{sorted(left)} never matches {sorted(right)}: {part.prettify()}")
    return left


def _check(used: Any, known: Set[str], part: Any) -> None:
    if unknown := sorted(set(used) - known):
        raise ValueError(f"no label {unknown[0]!r} in {part.prettify()}")
