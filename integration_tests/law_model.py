"""A model small enough to enumerate every answer, and the exact law of every chain on it.

Owns the tiny Qwen2 that the law tests serve, its tokenizer, the enumeration of what a server generates from
it (from the saved weights, by transformers), and the laws of finished runs: of the sampler as designed and
of the mistakes that a test must catch. The chain is written here a second time, from algorithms.md, over
whole matrices; of the plugin only records are used. Knows no server.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sglang_power.algorithms.cuts import EntropyCut
from sglang_power.algorithms.mh import MHConfig
from sglang_power.engines.tabular import Prefix, TabularModel
from sglang_power.policies.base import softmax
from sglang_power.types import FloatArray, ProposalLaw
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

EOS = 0
LETTERS = "abcd"
PROMPT = "abca"
HORIZON = 5
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"

WEIGHT_SEED = 22
HEAD_SCALE = 1.3
"""Standard deviation of the logits, about. Both were searched for: answers of every length, more than 50 of
them likely enough to be counted one by one, chains that forget their start within a dozen steps."""

Mistake = Literal["none", "no cut ratio", "common length", "capped"]
"""What a wrong chain does, each found in public code.

no cut ratio   log cut(m|y') - log cut(m|y) is left out
common length  the old suffix is summed over the proposal's length only
capped         proposals end at the current length
"""


# --- the model ----------------------------------------------------------------------------------------


def write_law_model(folder: Path) -> Path:
    """Write weights, configuration and tokenizer of the law model; the same numbers on any machine.

    Args:
        folder: where to; created.

    Returns:
        The folder.
    """
    _model(WEIGHT_SEED).save_pretrained(folder)
    tokenizer = Qwen2Tokenizer(
        vocab={"<eos>": EOS, **{letter: i + 1 for i, letter in enumerate(LETTERS)}},
        merges=[],
        eos_token="<eos>",
        pad_token="<eos>",
        unk_token="<eos>",
        clean_up_tokenization_spaces=False,
        model_max_length=64,
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.save_pretrained(folder)
    return folder


def _model(seed: int) -> Qwen2ForCausalLM:
    """Every weight from one numpy generator, in the order of the parameters' names."""
    config = Qwen2Config(
        vocab_size=1 + len(LETTERS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        eos_token_id=EOS,
        bos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=False,
        dtype="float32",
    )
    model = Qwen2ForCausalLM(config).float().eval()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if "norm" in name:
                weight.fill_(1.0)
                continue
            scale = HEAD_SCALE if name.startswith("lm_head") else 1.0
            fan_in = weight.shape[-1] if weight.dim() == 2 and "embed" not in name else 1
            values = rng.standard_normal(tuple(weight.shape)) * scale / fan_in**0.5
            weight.copy_(torch.from_numpy(values))
    return model


def tabular_model(folder: Path, prompt: str, horizon: int) -> TabularModel:
    """The exact law of what a server generates after `prompt`, up to `horizon` tokens.

    Its rows are p(. | prompt, prefix), softmax in float64 of the model's float32 logits.
    """
    rows = logits_behind(folder, prompt, horizon)
    return TabularModel(lambda prefix: softmax(rows[prefix]), horizon=horizon, eos=EOS)


def enumerated(model: Qwen2ForCausalLM, prompt: list[int], horizon: int) -> TabularModel:
    """See `tabular_model`."""
    rows = _logits_of(model, prompt, horizon)
    return TabularModel(lambda prefix: softmax(rows[prefix]), horizon=horizon, eos=EOS)


def logits_behind(folder: Path, prompt: str, horizon: int) -> dict[Prefix, FloatArray]:
    """The served model's logits, [vocab] float64, behind every string of fewer than `horizon` letters."""
    tokenizer = Qwen2Tokenizer.from_pretrained(folder)
    return _logits_of(Qwen2ForCausalLM.from_pretrained(folder).eval(), tokenizer.encode(prompt), horizon)


def _logits_of(model: Qwen2ForCausalLM, prompt: list[int], horizon: int) -> dict[Prefix, FloatArray]:
    """One batch holds every string of letters of length `horizon` - 1; each of its rows is of one prefix."""
    letters = range(1, 1 + len(LETTERS))
    longest = [np.array(ids) + 1 for ids in np.ndindex(*[len(letters)] * (horizon - 1))]
    batch = torch.tensor(np.array([[*prompt, *ids] for ids in longest]), dtype=torch.int64)
    with torch.inference_mode():
        logits = model(input_ids=batch).logits[:, len(prompt) - 1 :].double().numpy()
    return {tuple(ids[:t].tolist()): logits[i, t] for i, ids in enumerate(longest) for t in range(horizon)}


# --- exact laws ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rows:
    """Sums along the path to every node under one proposal law; [nodes, L + 1], constant behind the end.

    log_p, log_q: cumulative;  reached: q(node) > 0.
    """

    log_p: FloatArray
    log_q: FloatArray
    reached: NDArray[np.bool_]


class AnswerTree:
    """Every prefix of every answer, in lexicographic order, so that continuations are slices.

    A law is a vector over the nodes.

    Args:
        model: the enumerated model.
    """

    def __init__(self, model: TabularModel) -> None:
        self.model, self.horizon = model, model.horizon
        self.nodes = list(self._below(()))
        self.index = {y: i for i, y in enumerate(self.nodes)}
        self.length = np.array([len(y) for y in self.nodes])
        self.finished = np.array([model.ends(y) for y in self.nodes])
        self._end = self._ends_of_slices()
        self._rows_of = functools.cache(self._make_rows)

    def _below(self, prefix: Prefix) -> Iterator[Prefix]:
        yield prefix
        if not self.model.ends(prefix) and len(prefix) < self.horizon:
            for token in range(len(self.model.probs(prefix))):
                yield from self._below((*prefix, token))

    def _ends_of_slices(self) -> NDArray[np.int64]:
        end = np.arange(1, len(self.nodes) + 1)
        for i in reversed(range(1, len(self.nodes))):
            parent = self.index[self.nodes[i][:-1]]
            end[parent] = max(end[parent], end[i])
        return end

    def in_space(self, horizon: int) -> NDArray[np.bool_]:
        """The nodes of Y_horizon."""
        ends: NDArray[np.bool_] = (self.finished & (self.length <= horizon)) | (self.length == horizon)
        return ends

    def _make_rows(self, law: ProposalLaw) -> Rows:
        log_p = np.zeros((len(self.nodes), self.horizon + 1))
        log_q = np.zeros_like(log_p)
        for i, y in enumerate(self.nodes[1:], start=1):
            parent, t = self.index[y[:-1]], len(y)
            with np.errstate(divide="ignore"):
                step_p = np.log(self.model.probs(y[:-1])[y[-1]])
                step_q = np.log(self.model.proposal(y[:-1], law)[y[-1]])
            log_p[i], log_q[i] = log_p[parent], log_q[parent]
            log_p[i, t:] += step_p
            log_q[i, t:] += step_q
        return Rows(log_p, log_q, np.isfinite(log_q[:, -1]))

    def log_p(self, y: Prefix) -> float:
        """log p(y)."""
        return float(self._rows_of(ProposalLaw(1.0)).log_p[self.index[y], -1])

    @functools.cached_property
    def entropy(self) -> FloatArray:
        """H_m of the row that token m of a node was drawn from, [nodes, L]; 0 behind the end."""
        table = np.zeros((len(self.nodes), self.horizon))
        for i, y in enumerate(self.nodes[1:], start=1):
            p = self.model.probs(y[:-1])
            table[i] = table[self.index[y[:-1]]]
            table[i, len(y) - 1] = -(p[p > 0] @ np.log(p[p > 0]))
        return table

    def target(self, config: MHConfig) -> FloatArray:
        """pi: p^alpha on Y_L, restricted to what the proposals reach."""
        rows = self._rows_of(config.law)
        weights = np.exp(config.alpha * rows.log_p[:, -1])
        law = np.where(self.in_space(self.horizon) & rows.reached, weights, 0.0)
        return np.asarray(law / law.sum(), dtype=np.float64)

    def low_temperature(self, config: MHConfig) -> FloatArray:
        """The law of plain draws from the proposal law, token by token: not the target."""
        return self.extended(config.law, self._start(), self.horizon)

    def _start(self) -> FloatArray:
        """Nothing generated yet."""
        masses = np.zeros(len(self.nodes))
        masses[0] = 1.0
        return masses

    def log_cut(self, config: MHConfig) -> FloatArray:
        """log cut(m|y), [nodes, L]; -inf where m >= T."""
        position = np.arange(self.horizon)
        inside = position[None, :] < self.length[:, None]
        uniform = inside / np.maximum(self.length, 1)[:, None]
        cut = uniform
        if isinstance(config.cut, EntropyCut):
            jump = np.diff(self.entropy, axis=1, prepend=0.0).clip(min=0.0)
            gain = np.where(inside, jump**config.cut.beta, 0.0)
            total = gain.sum(axis=1, keepdims=True)
            eps = config.cut.epsilon
            share = gain / np.where(total > 0, total, 1.0)
            cut = np.where(total > 0, (1 - eps) * share + eps * uniform, uniform)
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(cut), dtype=np.float64)

    def kernel(self, config: MHConfig, horizon: int, mistake: Mistake = "none") -> FloatArray:
        """K[i, j] = P(node i -> node j) of one step at a stage's horizon."""
        rows, log_cut = self._rows_of(config.law), self.log_cut(config)
        capped = mistake == "capped"
        states = rows.reached & (self.length > 0) & (self.length <= horizon)
        if not capped:
            states &= self.in_space(horizon)
        matrix = np.zeros((len(self.nodes), len(self.nodes)))
        for at, prefix in enumerate(self.nodes):
            if self.finished[at] or len(prefix) >= horizon:
                continue
            block = np.arange(at + 1, self._end[at])
            block = block[states[block]]
            if len(block) == 0:
                continue
            m = len(prefix)
            reach = self.length[block] if capped else np.full(len(block), horizon)
            moved = self._proposed(rows, block, m, reach) * np.exp(log_cut[block, m])[:, None]
            ratio = self._log_ratio(config.alpha, rows, log_cut, block, m, mistake)
            accepted = moved * np.exp(np.minimum(0.0, ratio))
            matrix[np.ix_(block, block)] += accepted
            matrix[block, block] += (moved - accepted).sum(axis=1)
        return matrix

    def _proposed(self, rows: Rows, block: NDArray[np.int64], m: int, reach: NDArray[np.int64]) -> FloatArray:
        """q(suffix of j | first m tokens) for each row's own horizon, [block, block]."""
        length, finished = self.length[block], self.finished[block]
        ends = (finished[None, :] & (length[None, :] <= reach[:, None])) | (length[None, :] == reach[:, None])
        q = np.exp(rows.log_q[block, -1] - rows.log_q[block, m])
        return np.where(ends, q[None, :], 0.0)

    def _log_ratio(
        self,
        alpha: float,
        rows: Rows,
        log_cut: FloatArray,
        block: NDArray[np.int64],
        m: int,
        mistake: Mistake,
    ) -> FloatArray:
        log_w = alpha * rows.log_p[block] - rows.log_q[block]
        new = log_w[:, -1] - log_w[:, m]
        old = np.broadcast_to(new[:, None], (len(block), len(block)))
        if mistake == "common length":
            old = log_w[:, self.length[block]] - log_w[:, m : m + 1]
        ratio = new[None, :] - old
        if mistake != "no cut ratio":
            ratio = ratio + (log_cut[None, block, m] - log_cut[block, m][:, None])
        return np.asarray(ratio, dtype=np.float64)

    def extended(self, law: ProposalLaw, masses: FloatArray, horizon: int) -> FloatArray:
        """Unfinished nodes continued with q up to `horizon`."""
        rows, ends = self._rows_of(law), self.in_space(horizon)
        grown = np.where(ends, masses, 0.0)
        for at in np.flatnonzero((masses > 0) & ~ends):
            block = np.arange(at + 1, self._end[at])
            block = block[ends[block] & rows.reached[block]]
            grown[block] += masses[at] * np.exp(rows.log_q[block, -1] - rows.log_q[at, -1])
        return grown

    def answers(
        self, config: MHConfig, draft: FloatArray | None = None, mistake: Mistake = "none"
    ) -> FloatArray:
        """The law of the answer of a whole run, from nothing or from a random draft."""
        returned, waiting = np.zeros(len(self.nodes)), np.zeros(len(self.nodes))
        live = self._start()
        for stage in range(1, config.stages):
            live = self.extended(config.law, live, config.stage_horizon(stage))
            if config.schedule == "exact":  # what an extension finished goes to the last stage at once
                waiting += np.where(self.finished, live, 0.0)
                live = np.where(self.finished, 0.0, live)
            live = self._stage(config, live, config.stage_horizon(stage), mistake)
            over = returned if config.schedule == "paper" else waiting
            over += np.where(self.finished, live, 0.0)
            live = np.where(self.finished, 0.0, live)
        start = live + waiting if draft is None else draft
        return returned + self._stage(config, start, config.horizon, mistake)

    def _stage(self, config: MHConfig, masses: FloatArray, horizon: int, mistake: Mistake) -> FloatArray:
        masses = self.extended(config.law, masses, horizon)
        matrix = self.kernel(config, horizon, mistake)
        for _ in range(config.steps):
            masses = masses @ matrix
        return masses


def total_variation(one: FloatArray, other: FloatArray) -> float:
    """Half of the L1 distance."""
    return float(0.5 * np.abs(one - other).sum())
