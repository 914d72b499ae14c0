"""OpenTelemetry events of enrolments, against its API and, where it is installed, its SDK."""

from __future__ import annotations

import subprocess
import sys
from typing import Any
from unittest.mock import Mock

import opentelemetry._logs as otel
import pytest
from sglang_power import __version__
from sglang_power.errors import ConfigError
from sglang_power.experiments.records import Enrolment
from sglang_power.experiments.telemetry import EVENT, EvaluationEvents

LINE = Enrolment(
    at=1_700_000_000.0,
    exposure_id="e" * 32,
    experiment="power-vs-plain",
    phase=2,
    config="0123456789abcdef",
    unit="keyed-hash",
    arm="power",
    model="tiny",
    endpoint="chat",
    stream=False,
    plugin="1",
    sglang="2",
    text="a prompt",
)


class Recorder(otel.Logger):
    """A logger of OpenTelemetry's API that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__("recorder")
        self.records: list[otel.LogRecord] = []

    def emit(self, record: otel.LogRecord | None = None, **fields: Any) -> None:
        assert record is not None
        assert not fields
        self.records.append(record)

    def enabled(self, **_fields: Any) -> bool:
        return True


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()

    def get_logger(name: str, version: str) -> Recorder:
        assert (name, version) == ("sglang_power", __version__)
        return made

    monkeypatch.setattr(otel, "get_logger", get_logger)
    return made


def test_an_enrolment_is_one_event_of_the_conventions(recorder: Recorder) -> None:
    EvaluationEvents("embedded").emit(LINE)
    (record,) = recorder.records
    assert record.event_name == EVENT == "feature_flag.evaluation"
    assert record.timestamp == 1_700_000_000_000_000_000
    assert record.attributes == {
        "feature_flag.key": "power-vs-plain",
        "feature_flag.result.variant": "power",
        "feature_flag.result.reason": "split",
        "feature_flag.context.id": "keyed-hash",
        "feature_flag.provider.name": "embedded",
        "feature_flag.version": "0123456789abcdef",
        "sglang_power.exposure_id": "e" * 32,
        "sglang_power.phase": 2,
        "sglang_power.model": "tiny",
    }


def test_no_text_of_the_request_leaves_with_an_event(recorder: Recorder) -> None:
    EvaluationEvents("embedded").emit(LINE)
    (record,) = recorder.records
    assert LINE.text not in [*(record.attributes or {}).values(), record.body]


def test_a_testers_choice_is_no_split(recorder: Recorder) -> None:
    EvaluationEvents("embedded").emit(LINE.model_copy(update={"override": True}))
    (record,) = recorder.records
    assert (record.attributes or {})["feature_flag.result.reason"] == "targeting_match"


def test_that_nobody_takes_the_events_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    events = EvaluationEvents("embedded")
    for _ in range(3):
        events.emit(LINE)
    (record,) = caplog.records
    assert "no LoggerProvider" in record.getMessage()


def test_where_somebody_takes_them_nothing_is_said(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    EvaluationEvents("embedded").emit(LINE)
    assert recorder.records
    assert not caplog.records


def test_without_opentelemetry_the_configuration_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry._logs", None)
    with pytest.raises(
        ConfigError, match=r"open_telemetry=True: .*not installed\. Run pip install '\.\[otel\]'"
    ):
        EvaluationEvents("embedded")


def test_an_api_without_what_is_asked_of_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to 1.44: the server would start, and the first enrolment fail."""
    monkeypatch.delattr(otel.Logger, "enabled")
    with pytest.raises(ConfigError, match=r"open_telemetry=True: .*too old.*'\.\[otel\]'"):
        EvaluationEvents("embedded")


@pytest.mark.parametrize("method", ["enabled", "emit"])
def test_an_event_that_cannot_be_emitted_is_told_and_costs_nothing(
    method: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recorder, method, Mock(side_effect=RuntimeError("exporter gone")))
    EvaluationEvents("embedded").emit(LINE)
    assert "exporter gone" in caplog.text


def test_opentelemetry_is_not_imported_before_it_is_wanted() -> None:
    program = "import sys, sglang_power.experiments.telemetry; print('opentelemetry' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"


def test_the_sdk_exports_the_event(monkeypatch: pytest.MonkeyPatch) -> None:
    sdk = pytest.importorskip("opentelemetry.sdk._logs", reason="opentelemetry-sdk is not installed")
    export: Any = pytest.importorskip("opentelemetry.sdk._logs.export")
    kept, provider = export.InMemoryLogRecordExporter(), sdk.LoggerProvider()
    provider.add_log_record_processor(export.SimpleLogRecordProcessor(kept))
    monkeypatch.setattr(otel, "get_logger", provider.get_logger)
    EvaluationEvents("embedded").emit(LINE)
    (exported,) = kept.get_finished_logs()
    assert exported.log_record.event_name == EVENT
    assert exported.log_record.attributes["feature_flag.result.variant"] == "power"
