"""The record of a run, and the static page that shows it.

    record     the models: what a record may hold
    reports    what is read of `meta_info.power`
    responses  response -> record
    story      record -> sentences
    page       record -> HTML

Stands beside everything else: it reads JSON, whoever wrote it, and imports neither samplers nor SGLang.
"""

from sglang_power.viewer.page import rendered
from sglang_power.viewer.record import TraceRecord, validated
from sglang_power.viewer.responses import read_record, record_of

__all__ = ["TraceRecord", "read_record", "record_of", "rendered", "validated"]
