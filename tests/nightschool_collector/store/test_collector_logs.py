"""Log records: outcomes are checked and go to their own topic, the rest is stored by trace."""

from __future__ import annotations

from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse

from nightschool.outcomes.record import from_log_record

LOGS, OUTCOMES = "ns.otlp_logs", "ns.outcomes"
TRACE = bytes(range(16))


def logs(*events: tuple[str, bytes, dict[str, str]]) -> ExportLogsServiceRequest:
    """A request of log records, each an event name, a trace id and attributes."""
    request = ExportLogsServiceRequest()
    group = request.resource_logs.add()
    group.resource.attributes.add(key="service.name").value.string_value = "app"
    for name, trace_id, attributes in events:
        log = group.scope_logs.add().log_records.add(event_name=name, trace_id=trace_id)
        for key, value in attributes.items():
            log.attributes.add(key=key).value.string_value = value
    return request


def test_evaluation_results_become_outcomes(collector: Any) -> None:
    """A `gen_ai.evaluation.result` event, here a foreign one, is stored as an outcome that the night can read."""
    event = ("gen_ai.evaluation.result", TRACE, {"gen_ai.evaluation.name": "thumb", "gen_ai.evaluation.score.label": "up"})
    answer = collector.post("/v1/logs", logs(event))
    assert answer.status_code == 200
    assert not ExportLogsServiceResponse.FromString(answer.content).HasField("partial_success")
    (record,) = collector.stored(OUTCOMES)
    assert collector.stored(LOGS) == []
    assert (record.key, record.headers["ns-tenant"]) == (TRACE.hex().encode(), b"acme")
    (log,) = ExportLogsServiceRequest.FromString(record.value).resource_logs[0].scope_logs[0].log_records
    outcome = from_log_record(log)
    assert (outcome.name, outcome.value, outcome.target) == ("thumb", "up", {"trace_id": TRACE.hex()})


def test_other_logs_are_kept_by_trace(collector: Any) -> None:
    """Any other log record is stored as it came, one trace a record, and without a trace under a key of its own."""
    details = "gen_ai.client.inference.operation.details"
    request = logs(
        (details, TRACE, {"a": "1"}), ("", b"", {"a": "2"}), (details, TRACE, {"a": "3"}), ("x", bytes(16), {"a": "4"})
    )
    assert collector.post("/v1/logs", request).status_code == 200
    found = {}
    for record in collector.stored(LOGS):
        groups = ExportLogsServiceRequest.FromString(record.value).resource_logs
        assert {group.resource.attributes[0].value.string_value for group in groups} == {"app"}
        found[record.key] = [
            log.attributes[0].value.string_value for group in groups for scope in group.scope_logs for log in scope.log_records
        ]
    assert found.pop(TRACE.hex().encode()) == ["1", "3"]
    ((key, rest),) = found.items()
    assert (len(key), rest) == (32, ["2", "4"])
    assert collector.stored(OUTCOMES) == []


def test_a_broken_outcome_event_is_rejected_by_name(collector: Any) -> None:
    """An evaluation event that is not an outcome is counted with the reason; the valid records are stored."""
    broken = ("gen_ai.evaluation.result", TRACE, {"gen_ai.evaluation.score.label": "up"})
    answer = collector.post("/v1/logs", logs(broken, ("x", TRACE, {"a": "1"})))
    partial = ExportLogsServiceResponse.FromString(answer.content).partial_success
    assert partial.rejected_log_records == 1
    assert "not a gen_ai.evaluation.result event with a name" in partial.error_message
    assert len(collector.stored(LOGS)) == 1
    assert collector.stored(OUTCOMES) == []


def test_json_log_ids_are_hexadecimal(collector: Any) -> None:
    """Trace ids of OTLP/JSON log records are read as hex, so that an outcome has the id of its trace."""
    attributes = [{"key": "gen_ai.evaluation.name", "value": {"stringValue": "thumb"}}]
    attributes.append({"key": "gen_ai.evaluation.score.value", "value": {"doubleValue": 1}})
    log = {"eventName": "gen_ai.evaluation.result", "traceId": TRACE.hex(), "spanId": "", "attributes": attributes}
    answer = collector.post("/v1/logs", {"resourceLogs": [{"scopeLogs": [{"logRecords": [log]}]}]}, form="application/json")
    assert (answer.status_code, answer.json()) == (200, {})
    assert [record.key for record in collector.stored(OUTCOMES)] == [TRACE.hex().encode()]
