"""What happened in a run, in plain words, for readers who have never seen the method.

Every sentence is made from the record alone. Strings of the record appear in them as they are: whoever shows
them makes them harmless (`page`).
"""

from __future__ import annotations

import math

from sglang_power.viewer.record import Firing, Step, TraceChain, TraceClass, TraceRecord, TraceTree

FIRINGS = {
    "entropy": "the entropy of the next token was above {0} nats",
    "varentropy": "the spread of the next token's surprise was above {0}",
    "ratio": "the second choice was more than {0} times as likely as the first",
    "jump": "the entropy rose by more than {0} nats from one token to the next",
    "quantile": "the entropy was above that of a share of {0} of the tokens before",
}
"""What it means that a trigger fires; others are told by name."""

SCORES = {
    "mean_log_p": "its tokens were the most likely ones on average",
    "log_p": "it was the most likely text as a whole",
    "power": "it was the most likely text as a whole",
    "confidence": "the model was most decided about its answer",
    "self_evaluation": "the model itself judged it most likely to be right",
    "reward": "it was given the highest reward",
}
"""Why the highest score of that name wins."""

INDEPENDENT = frozenset({"vote", "best_of"})
"""Samplers whose answers know nothing of each other."""


def sentences(record: TraceRecord) -> list[str]:
    """The story of a run: what was done, what came of it, what it cost."""
    run = record.run
    told = (
        _chain(run) if isinstance(run, TraceChain) else [_opening(run, record), *_caps(run), why(run, record)]
    )
    return [*told, _cost(record)]


def counted(number: int, singular: str, many: str | None = None) -> str:
    """ "1 token", "2 tokens"."""
    return f"{number:,} {singular if number == 1 else many or singular + 's'}"


def _cost(record: TraceRecord) -> str:
    totals = record.totals
    spent = f"the whole run generated {counted(totals.decoded, 'token')}"
    if not totals.answer:
        return f"In all, {spent}."
    times = totals.decoded / totals.answer
    return f"The answer has {counted(totals.answer, 'token')}; {spent}, {times:.1f} times as many."


def _chain(chain: TraceChain) -> list[str]:
    steps = chain.steps
    accepted = sum(step.accepted for step in steps)
    early = [step for step in steps if step.early_rejected]
    told = [
        "The model wrote an answer block by block and kept revising it: "
        f"{counted(len(steps), 'time')}, everything behind a random place was written anew.",
        f"{accepted} of these new endings replaced the old one, {len(steps) - accepted} did not. Endings "
        "that make the whole answer more likely win more often, since the rule weighs answers by their "
        f"probability to the power of {chain.alpha:g}.",
    ]
    if early:
        told.append(_early(early))
    return told


def _early(stopped: list[Step]) -> str:
    endings = counted(len(stopped), "new ending")
    told = f"{endings} could not win any more half-way and {'was' if len(stopped) == 1 else 'were'} stopped"
    saved = [step.saved_tokens_max for step in stopped if step.saved_tokens_max is not None]
    return f"{told}, which saved at most {counted(sum(saved), 'token')}." if saved else f"{told}."


def _opening(tree: TraceTree, record: TraceRecord) -> str:
    """How there came to be several texts."""
    if tree.triggers:
        return _forks(tree)
    ends = _ends(tree) + tree.omitted
    if any(node.first_log_p is not None for node in tree.nodes):
        firsts = counted(ends, "most likely first token")
        return f"The model's {firsts} were each tried once, and each was continued to its end."
    if record.sampler in INDEPENDENT:
        return f"The model answered {counted(ends, 'time')}, independently."
    return f"The sampler “{record.sampler}” came to {counted(ends, 'answer')}."


def _ends(tree: TraceTree) -> int:
    return sum(node.fate in ("leaf", "chosen") for node in tree.nodes)


def _or_more(tree: TraceTree) -> str:
    """After a number that branches which the record omits may add to."""
    return " or more" if tree.omitted else ""


def _forks(tree: TraceTree) -> str:
    known = all(trigger.name in FIRINGS for trigger in tree.triggers)
    cause = (
        f"{'the model was unsure how to go on' if known else 'a trigger fired'} ({_firings(tree.triggers)})"
    )
    forked = len(tree.nodes) - 1 + tree.omitted
    if forked == 0:
        return f"The text would have forked where {cause}, which happened nowhere."
    more = _or_more(tree)
    places = counted(len({0, *(node.parent for node in tree.nodes[1:])}), "place")
    branches = counted(forked, "branch", "branches")
    pruned = sum(node.fate == "pruned" for node in tree.nodes)
    were = "was" if pruned == 1 and not more else "were"
    given_up = f", of which {pruned:,}{more} {were} given up" if pruned else ""
    return f"At {places}{more} {cause}. There the text forked, into {branches} in all{given_up}."


def _caps(tree: TraceTree) -> list[str]:
    """What the limits of a search refused."""
    told = [
        f"From the token at position {cap.position} on the limit {cap.name} allowed no further fork, though "
        f"{counted(cap.refused, 'more token was', 'more tokens were')} as uncertain."
        for cap in tree.capped
    ]
    return told if tree.hint is None else [*told, f"{tree.hint}."]


def _firings(triggers: list[Firing]) -> str:
    told = []
    for trigger in triggers:
        shown = FIRINGS.get(trigger.name)
        values = [f"{value:g}" for value in trigger.thresholds]
        told.append(shown.format(*values) if shown and values else " ".join([trigger.name, *values]))
    return ", or ".join(told)


def why(tree: TraceTree, record: TraceRecord) -> str:
    """Why the answer that was returned won."""
    if tree.reason == "no_answer":
        return "No path contained an answer of the kind that was asked for, so the first one was returned."
    if tree.reason == "no_score":
        return "No finished answer got a score, so the one that the model found likeliest was returned."
    if tree.reason in ("largest", "tie") and tree.classes:
        if record.sampler == "cot" and record.params.get("select") == "max":
            return "The path about whose answer the model was most decided was returned."
        return _vote(tree)
    if _ends(tree) == 1 and not tree.omitted:
        return "Only one finished answer was left, so it was returned."
    if tree.reason not in SCORES:
        return f"Of the finished answers one was returned; what decided was: {tree.reason}."
    return f"Of the finished answers one was returned, because {SCORES[tree.reason]}."


def _vote(tree: TraceTree) -> str:
    """Which group of equal answers won, by how much."""
    groups = sorted((group for group in tree.classes if group.weight is not None), key=_weight, reverse=True)
    winner = next((group for group in groups if tree.chosen in group.members), None)
    if winner is None:
        return "The group of equal answers that weighed most won."
    told = f"Answers that mean the same were put together, which made {counted(len(groups), 'group')}. "
    paths = counted(len(winner.members), "path") + _or_more(tree)
    told += f"The answer “{winner.representative}” weighed {_weight(winner):.3g} ({paths})"
    rest = [group for group in groups if group is not winner]
    if tree.reason == "tie":
        return f"{told}, no more than another one; a random draw decided."
    if rest:
        told += f", the next one, “{rest[0].representative}”, weighed {_weight(rest[0]):.3g}"
    return f"{told}; so it won, and its best path was returned."


def _weight(group: TraceClass) -> float:
    return -math.inf if group.weight is None else group.weight
