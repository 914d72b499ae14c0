"""A program's backend once it works with token ids: what SGLang's interpreter calls instead of its endpoint.

Owns one program's ledger and keeps it beside the interpreter's text: before a request, text without ids is
encoded; after it, the ids that the server drew are kept. What the interpreter asks for otherwise goes to its
endpoint. Knows the interpreter by the few attributes of `Executor`; `_lang` puts sessions in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sglang_power.engines.http.wire import NEUTRAL
from sglang_power.errors import HostError, RequestError, UnsupportedError
from sglang_power.frontend.client import Answer, Client
from sglang_power.frontend.forced_prefix import End, end_of, first_stop, may_stop_behind, stop_strings
from sglang_power.frontend.laws import exponent_of
from sglang_power.frontend.ledger import REPLACEMENT, DrawnText, Ledger, LedgerEntry
from sglang_power.frontend.rendering import Tail, shown, text_of
from sglang_power.reports import report_of
from sglang_power.request import NO_SAMPLER

LOGPROB_FIELDS = ("return_logprob", "logprob_start_len", "top_logprobs_num", "return_text_in_logprobs")


class Executor(Protocol):
    """What sessions touch of sglang.lang.interpreter.StreamExecutor."""

    text_: str
    images_: list[Any]
    backend: Any

    def end(self) -> None:
        """End its thread, once everything that was asked of it is done."""


@dataclass(frozen=True, slots=True)
class SegmentRequest:
    """What one generation of a program asks for.

    Args:
        name: its variable.
        values: `custom_params`; None for SGLang's own `sgl.gen`.
        settings: sampling parameters instead of the program's.
    """

    name: str | None = None
    values: dict[str, Any] | None = None
    settings: Any = None


@dataclass(frozen=True, slots=True)
class Call:
    """One generation under way.

    Args:
        asked: what the program asks for.
        settings: SGLang's sampling parameters.
        tail: in front of the segment.
        prefix: what the segment begins with; a piece without a draw where there is none.
        end: of the segment, where that is inside of the prefix; then nothing is generated.
    """

    asked: SegmentRequest
    settings: Any
    tail: Tail
    prefix: LedgerEntry
    end: End | None

    @property
    def at_once(self) -> bool:
        """The text is not known before all of it is."""
        return self.end is not None or may_stop_behind(self.prefix.text, self.settings)


class Session:
    """One program's way to the server, in token ids.

    Its `support_concate_and_append` is off: joined forks are joined as text.

    Args:
        endpoint: SGLang's backend.
        client: of the same server.
        output: SGLang's settings of how ids become text, part of every request.
        ledger: what the program holds so far.

    Attributes:
        ended: nothing runs in the program any more.
    """

    support_concate_and_append = False

    def __init__(
        self, endpoint: Any, client: Client, output: dict[str, Any], ledger: Ledger | None = None
    ) -> None:
        self.endpoint, self.client, self._output = endpoint, client, output
        self.ledger = Ledger() if ledger is None else ledger
        self.asked = SegmentRequest()
        self.ended = False
        self._forks: list[Executor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.endpoint, name)

    def forked(self, fork: Executor) -> Session:
        """The session of a fork, which ends with this program at the latest."""
        self._forks.append(fork)
        return Session(self.endpoint, self.client, self._output, self.ledger.copy())

    def end_program(self, s: Executor) -> None:
        """After a program: end the forks that nobody joined or selected from.

        An executor's thread keeps the executor alive, and the interpreter waits for such threads at its end.
        """
        self.ended = True
        forks, self._forks = self._forks, []
        for fork in forks:
            if not fork.backend.ended:
                fork.end()
        self.endpoint.end_program(s)

    def settle(self, s: Executor) -> None:
        """Give ids to all of the program's text."""
        if s.images_:
            raise UnsupportedError("image", "...", "images have no token ids", "Use SGLang's own primitives")
        rest = self.ledger.missing(s.text_)
        if rest:
            ids = self.client.encode([rest])[0] if self.ledger.pieces else self.client.prompt_ids(rest)
            self.ledger.append(LedgerEntry(rest, tuple(ids)))

    def commit_lazy_operations(self, s: Executor) -> None:
        """Before forks: have the server cache what they share."""
        self.settle(s)
        self.client.warm(self.ledger.ids)

    def begin_with(self, s: Executor, prefix: LedgerEntry) -> None:
        """Set the tokens that the next generation begins with."""
        self.ledger.append(prefix)
        s.text_ += prefix.text

    def adopt(self, s: Executor, name: str, text: str, reason: dict[str, Any], settings: Any) -> None:
        """Take in a segment that was generated as text: its tokens are what the server reads in the text.

        A stop string was cut off the text. Where a pattern matched, the reason names the pattern, and nothing
        was cut off.
        """
        matched = reason.get("matched") if reason["type"] == "stop" else None
        cut = isinstance(matched, str) and matched in stop_strings(settings) and matched not in text
        drawn = f"{text}{matched}" if cut else text
        shown_ids, drawn_ids = (tuple(ids) for ids in self.client.encode([text, drawn]))
        if isinstance(matched, int):
            drawn_ids += (matched,)
        self.ledger.append(LedgerEntry(text, shown_ids, DrawnText(name, drawn_ids, text, settings=settings)))
        s.text_ += text

    def withdraw(self, s: Executor, name: str) -> DrawnText:
        """Take the last generated segment back, as a draft.

        Raises:
            RequestError: the program's text does not end with the segment of that name.
        """
        rest, draw = self.ledger.missing(s.text_), self.ledger.last_draw()
        if draw is None or draw.name != name or self.ledger.pieces[-1].text + rest != draw.text:
            raise RequestError("name", name, "not what was generated last", "Refine right after generating")
        self.ledger.withdraw(draw)
        s.text_ = s.text_[: len(s.text_) - len(draw.text)] + draw.taken
        return draw

    def generate(self, s: Executor, sampling_params: Any) -> tuple[str, dict[str, Any]]:
        """Return the text and its meta_info, in place of SGLang's endpoint."""
        return self._answered(self._prepare(s, sampling_params))

    def generate_stream(self, s: Executor, sampling_params: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield what is new of the text, and the meta_info, of every event, in place of SGLang's endpoint."""
        call = self._prepare(s, sampling_params)
        if call.at_once:
            yield self._answered(call)
            return
        sent, answer = "", None
        for answer in self.client.stream(self._body(call)):
            finished = bool(answer["meta_info"].get("finish_reason"))
            text = self._record(call, answer) if finished else self._text(call, answer)
            if not text.startswith(sent):
                raise HostError("a stream took text back; is --incremental-streaming-output set?")
            yield text[len(sent) :], answer["meta_info"]
            sent = text
        if answer is None or not answer["meta_info"].get("finish_reason"):
            raise HostError("a stream ended before its answer")

    def select(self, s: Executor, choices: Sequence[str], temperature: float, choices_method: Any) -> Any:
        """Choose among texts, each encoded on its own, so that no token heals across the border."""
        assert temperature <= 1e-5, temperature
        self.settle(s)
        encoded, prefix = self.client.encode(choices), self.ledger.ids
        if empty := [choice for choice, ids in zip(choices, encoded, strict=True) if not ids]:
            raise RequestError("choices", empty[0], "a choice without tokens", "Leave it out")
        metas = self.client.input_log_probs([(prefix, ids) for ids in encoded])
        token_log_probs = [
            meta["input_token_logprobs"][-len(ids) :] for meta, ids in zip(metas, encoded, strict=True)
        ]
        unconditional = None
        if choices_method.requires_unconditional_logprobs:
            alone = self.client.input_log_probs([(ids[:1], ids[1:]) for ids in encoded])
            unconditional = [meta["input_token_logprobs"] for meta in alone]
        decision = choices_method(
            choices=choices,
            normalized_prompt_logprobs=[
                sum(t[0] for t in log_probs) / len(log_probs) for log_probs in token_log_probs
            ],
            input_token_logprobs=token_log_probs,
            output_token_logprobs=[meta["output_token_logprobs"] for meta in metas],
            unconditional_token_logprobs=unconditional,
        )
        self.ledger.append(LedgerEntry(decision.decision, tuple(encoded[choices.index(decision.decision)])))
        return decision

    def _prepare(self, s: Executor, sampling_params: Any) -> Call:
        asked = self.asked
        settings = sampling_params if asked.settings is None else asked.settings
        if settings.n != 1:
            hint = "Use sp.branch(s, n), or a sampler that draws several"
            raise UnsupportedError("n", settings.n, "one generation is one answer", hint)
        self.settle(s)
        tail, prefix = self._take_tail(s)
        end = None if prefix.draw is None else end_of(self.client, prefix.draw, settings)
        self.endpoint._handle_dtype_to_regex(settings)
        return Call(asked, settings, tail, prefix, end)

    def _body(self, call: Call) -> dict[str, Any]:
        fields = call.settings.to_srt_kwargs()
        fields["max_new_tokens"] -= len(call.prefix.ids)
        extra = {name: getattr(call.settings, name, None) for name in LOGPROB_FIELDS}
        return {
            "input_ids": [*self.ledger.ids, *call.prefix.ids],
            "sampling_params": {**NEUTRAL, **self._output, **fields, "custom_params": call.asked.values},
            **{name: value for name, value in extra.items() if value is not None},
        }

    def _take_tail(self, s: Executor) -> tuple[Tail, LedgerEntry]:
        """What the next segment writes anew: characters that are not complete, and its prefix."""
        prefix = self.ledger.take_prefix()
        tail = Tail(*self.ledger.split_character())
        s.text_ = s.text_[: len(s.text_) - len(prefix.text) - len(tail.cut)]
        return tail, prefix

    def _answered(self, call: Call) -> tuple[str, dict[str, Any]]:
        """The text and the meta_info of a segment that is not streamed."""
        if call.end is not None:
            meta = {"finish_reason": dict(call.end.reason), "completion_tokens": len(call.end.drawn)}
            return self._ended(call, call.end), meta
        answer: Answer = self.client.generate(self._body(call))
        return self._record(call, answer), answer["meta_info"]

    def _record(self, call: Call, answer: Answer) -> str:
        """Keep what was drawn; the text of the variable."""
        meta, drawn = answer["meta_info"], (*call.prefix.ids, *answer["output_ids"])
        report = meta.get("power")
        check_sampler(call.asked.values, report)
        if call.at_once and (end := first_stop(self.client, drawn, stop_strings(call.settings))) is not None:
            meta["finish_reason"] = dict(end.reason)
            return self._ended(call, end)
        exponent = (
            None if call.prefix.draw is not None else exponent_of(report, call.settings.to_srt_kwargs())
        )
        text = self._text(call, answer)
        self._keep(call, End(drawn, meta["finish_reason"]), text, exponent)
        return text

    def _ended(self, call: Call, end: End) -> str:
        """Keep a segment whose end was found here, and not by the server."""
        text = text_of(self.client, call.tail, end.drawn, end.reason)
        self._keep(call, end, text, None)
        return text

    def _keep(self, call: Call, end: End, text: str, exponent: float | None) -> None:
        ids, held = shown(self.client, call.tail, end.drawn, text, end.reason)
        draw = DrawnText(call.asked.name, end.drawn, text, exponent, call.settings, call.tail.cut)
        self.ledger.append(LedgerEntry(held, ids, draw))

    def _text(self, call: Call, answer: Answer) -> str:
        """The text of an answer, with its prefix's; decoded together where a character spans the border."""
        prefix, text = call.prefix, answer["text"]
        if not call.tail.ids and not prefix.text.endswith(REPLACEMENT):
            return f"{prefix.text}{text}"
        drawn, reason = (*prefix.ids, *answer["output_ids"]), answer["meta_info"].get("finish_reason")
        return text_of(self.client, call.tail, drawn, reason)


def check_sampler(values: dict[str, Any] | None, report: dict[str, Any] | None) -> None:
    """Raises HostError unless the server ran the sampler that was asked for; of none it says nothing."""
    if values is not None and not (report is None and values["sampler"] == NO_SAMPLER):
        report_of(report, values["sampler"])
