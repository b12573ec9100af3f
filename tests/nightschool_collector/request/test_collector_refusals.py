"""What is refused, with nothing stored: unknown keys, bodies too large or broken, and all while the stream is down."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import zstandard
from google.rpc.status_pb2 import Status
from starlette.testclient import TestClient

from nightschool.errors import StreamUnavailable
from nightschool.keys import KeyRing, hash_key
from nightschool.stream import Offset, Record
from nightschool_collector.app import create_app

ROUTES = ["/v1/traces", "/v1/logs", "/v1/outcomes"]
# A few KiB that expand to 64 MiB.
BOMBS = {"gzip": gzip.compress(bytes(64 << 20)), "zstd": zstandard.compress(bytes(64 << 20))}


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("authorization", [None, "Bearer", "Bearer wrong", "Basic a2V5", "key-of-acme", "Bearer key-of-acmé"])
async def test_a_stranger_is_refused_before_the_body_is_read(collector: Any, path: str, authorization: str | None) -> None:
    """No key or an unknown one is 401, and not one byte of the body is taken from the connection."""
    headers = {"content-type": "application/json"}
    if authorization is not None:
        headers["authorization"] = authorization

    async def receive() -> dict[str, Any]:
        raise AssertionError("the body was read")

    sent = await collector.call(path, headers, receive)
    assert sent[0]["status"] == 401
    assert dict(sent[0]["headers"])[b"www-authenticate"] == b"Bearer"
    assert b"no tenant has this key" in sent[1]["body"]
    assert collector.everything_stored() == []


@pytest.mark.parametrize("path", ROUTES)
def test_a_declared_body_over_the_limit_is_refused(collector: Any, path: str) -> None:
    """A Content-Length over the limit is 413, which exporters do not send again."""
    answer = collector.post(path, b"x" * (collector.limit + 1), form="application/json")
    assert answer.status_code == 413
    assert f"{collector.limit + 1} bytes; at most {collector.limit} are allowed" in answer.text


@pytest.mark.parametrize("path", ROUTES)
def test_a_chunked_body_over_the_limit_is_refused_as_it_passes_it(collector: Any, path: str) -> None:
    """Without a declared length the limit holds while the body streams in."""

    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(1 << 16)

    headers = {"content-type": "application/json", "authorization": "Bearer key-of-acme"}
    chunks = endless()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": next(chunks), "more_body": True}

    sent = asyncio.run(collector.call(path, headers, receive))
    assert sent[0]["status"] == 413


@pytest.mark.parametrize("encoding", BOMBS)
@pytest.mark.parametrize("path", ROUTES)
def test_a_zip_bomb_is_refused_without_being_expanded(collector: Any, path: str, encoding: str) -> None:
    """The limit holds after decompression, and a small body never costs more memory than a few limits."""
    tracemalloc.start()
    try:
        answer = collector.post(path, BOMBS[encoding], form="application/json", content_encoding=encoding)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.status_code == 413
    assert "when decompressed" in answer.text
    assert peak < 8 * collector.limit


@pytest.mark.parametrize(
    ("body", "form", "encoding", "message"),
    [
        (b"\xff\xff\xff", "application/x-protobuf", "", "not a valid protobuf message"),
        (b"not json", "application/json", "", "not valid OTLP/JSON"),
        (b"[]", "application/json", "", "is an object, got []"),
        (b'{"resourceSpans": 5, "resourceLogs": 5}', "application/json", "", "not valid OTLP/JSON"),
        (b"[" * 100_000, "application/json", "", "nested too deep"),
        (b"not gzip", "application/x-protobuf", "gzip", "not valid gzip"),
        (gzip.compress(b"x" * 1000)[:-5], "application/x-protobuf", "gzip", "ends too early"),
        (b"not zstd", "application/x-protobuf", "zstd", "not valid zstd"),
        (zstandard.compress(b"x" * 1000)[:-1], "application/x-protobuf", "zstd", "ends too early"),
    ],
)
@pytest.mark.parametrize("path", ROUTES[:2])
def test_malformed_otlp_is_a_status_in_the_format_of_the_request(
    collector: Any, path: str, body: bytes, form: str, encoding: str, message: str
) -> None:
    """A body that cannot be read is 400 with a google.rpc.Status in the client's own content type."""
    answer = collector.post(path, body, form=form, content_encoding=encoding or "identity")
    assert (answer.status_code, answer.headers["content-type"]) == (400, form)
    if form == "application/json":
        status = answer.json()
        code, said = status["code"], status["message"]
    else:
        parsed = Status.FromString(answer.content)
        code, said = parsed.code, parsed.message
    assert code == 3  # INVALID_ARGUMENT
    assert message in said
    assert collector.everything_stored() == []


@pytest.mark.parametrize("name", ["traceId", "spanId", "parentSpanId", "trace_id"])
def test_ids_that_are_not_hexadecimal_are_malformed(collector: Any, name: str) -> None:
    """Base64 ids, which a generic protobuf library writes, are refused and not taken for other ids."""
    span = {"traceId": "11" * 16, "spanId": "22" * 8} | {name: "W47/95gDgQPSabYzgT/GDA=="}
    answer = collector.post("/v1/traces", {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}, form="application/json")
    assert answer.status_code == 400
    assert f"{name} is 'W47/95gDgQPSabYzgT/GDA=='; it must be hexadecimal digits" in answer.json()["message"]


@pytest.mark.parametrize("path", ROUTES[:2])
def test_unknown_formats_and_encodings_are_refused_with_what_is_allowed(collector: Any, path: str) -> None:
    """415 names the content types and encodings there are."""
    answer = collector.post(path, b"", form="application/grpc")
    assert answer.status_code == 415
    assert "application/x-protobuf and application/json" in answer.json()["message"]
    answer = collector.post(path, b"", content_encoding="br")
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "gzip, zstd, identity")
    assert "allowed are gzip, zstd and identity" in Status.FromString(answer.content).message


class StreamThatIsDown:
    """A stream whose disk is full or whose broker is down."""

    append_bytes = 1 << 20

    def append(self, topic: str, records: Sequence[Record]) -> list[Offset]:
        raise StreamUnavailable("the disk is full")

    def end_offsets(self, topic: str) -> dict[int, int]:
        raise StreamUnavailable("the disk is full")


@pytest.mark.parametrize(("jitter", "retry_after"), [(0.0, "1"), (0.5, "2"), (0.9999, "3")])
@pytest.mark.parametrize("path", ROUTES)
def test_an_unavailable_stream_asks_to_try_again_soon(requests: Any, path: str, jitter: float, retry_after: str) -> None:
    """503 with Retry-After of 1 to 3 whole seconds: exporters drop a batch on 429 or on a long wait."""
    down: Any = StreamThatIsDown()
    app = create_app(down, KeyRing({"acme": [hash_key("k")]}), 1 << 20, jitter=lambda: jitter)
    body, form = {
        "/v1/traces": (requests.spans(1).SerializeToString(), "application/x-protobuf"),
        "/v1/logs": (b'{"resourceLogs": [{"scopeLogs": [{"logRecords": [{"severityText": "x"}]}]}]}', "application/json"),
        "/v1/outcomes": (
            b'{"target": {"response_id": "r"}, "name": "n", "value": 1, "source": {"kind": "code"}}',
            "application/json",
        ),
    }[path]
    client = TestClient(app)
    answer = client.post(path, content=body, headers={"content-type": form, "authorization": "Bearer k"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, retry_after)
    assert "the disk is full" in answer.text
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200


def test_health_and_readiness_need_no_key(collector: Any) -> None:
    """Probes of an orchestrator get 200 from a collector that can work."""
    assert (collector.client.get("/healthz").status_code, collector.client.get("/readyz").status_code) == (200, 200)


def test_other_paths_and_methods_are_refused(collector: Any) -> None:
    """There is nothing else here, and no generated documentation pages."""
    assert [collector.client.get(path).status_code for path in ("/", "/docs", "/openapi.json", "/v1/metrics")] == [404] * 4
    assert collector.client.get("/v1/traces").status_code == 405
