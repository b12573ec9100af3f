"""Whatever is sent, the collector answers as its documentation says: no 5xx, no crash, nothing wrong in the stream.

    make bench NAME=fuzz            (200,000 inputs, a few minutes)

Hypothesis draws well-formed requests (OTLP traces and logs, outcomes, browser outcomes) with unusual content. Each is
sent as it is and in many broken forms: bytes flipped, cut, doubled and spliced, JSON nodes replaced, encodings and
headers that are not true. HTTP requests go into the ASGI application without a socket. Every eighth OTLP body also goes
through real gRPC on a loopback socket. The stream behind it checks every record: it holds one trace, has its id as key,
can be read, is small enough, and is under the right tenant.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import collections
import gzip
import json
import platform
import random
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import hypothesis
import zstandard
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

from nightschool.keys import KeyRing, hash_key
from nightschool.outcomes.tokens import OutcomeKey, TokenClaims, mint_token
from nightschool.redaction.redactor import Redactor
from nightschool.redaction.rules import Rules
from nightschool.stream import MAX_RECORD_BYTES, Offset, Record
from nightschool_collector.app import app_of
from nightschool_collector.counters import Counters
from nightschool_collector.grpc_server import GrpcServer
from nightschool_collector.outcomes.browser_settings import BrowserAccess, BrowserSettings
from nightschool_collector.receiver import Receiver
from nightschool_collector.request.admission import Admission, Budgets
from nightschool_collector.store.writer import RecordWriter

ROOT = Path(__file__).resolve().parents[1]
LIMIT_BYTES = 1 << 20
FORMS_PER_EXAMPLE = 40
GRPC_EVERY = 8
TRACES, LOGS, OUTCOMES, BROWSER, CONFIRM = (
    "/v1/traces",
    "/v1/logs",
    "/v1/outcomes",
    "/v1/outcomes/browser",
    "/v1/outcomes/confirm",
)
_GRPC = {
    TRACES: "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    LOGS: "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
}
PROTOBUF, JSON = "application/x-protobuf", "application/json"
# Every status that a client may get; 429 is for browsers, whose writes are limited.
SAID = {200, 202, 204, 400, 401, 403, 404, 405, 409, 413, 415, 429}
SAID_BY_GRPC = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,  # gRPC's own code for a message over the limit
    grpc.StatusCode.UNIMPLEMENTED,  # and for a compression that it does not have
}


# --- what is drawn ------------------------------------------------------------------------------------------------------
AWKWARD = [
    "",
    "\x00",
    "é",
    "\u2028",
    "😀" * 20,
    "gen_ai.evaluation.result",
    "1e999",
    "NaN",
    "null",
    "a" * 300,
    "{",
    '"',
    "\\u0000",
]
KEYS = [
    "gen_ai.evaluation.name",
    "gen_ai.evaluation.score.value",
    "gen_ai.evaluation.score.label",
    "gen_ai.evaluation.explanation",
    "gen_ai.response.id",
    "gen_ai.input.messages",
    "gen_ai.output.messages",
    "gen_ai.conversation.id",
    "user.id",
    "session.id",
    "nightschool.outcome.id",
    "nightschool.outcome.op",
    "nightschool.outcome.value",
    "nightschool.outcome.target",
    "nightschool.outcome.edit.final_text",
    "nightschool.outcome.source.kind",
    "nightschool.outcome.source.id",
    "nightschool.outcome.metadata",
    "nightschool.completion.token_ids",
    "nightschool.tenant.id",
    "nightschool.subject",
]
TEXTS = [
    *AWKWARD,
    *KEYS,
    "anna@example.com",
    "call 0049 170 1234567",
    '{"trace_id":"0af7651916cd43dd8448eb211c80319c"}',
    "human",
    "set",
]
INTEGERS = [0, 1, -1, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63), 2**64 - 1]
_BOUNDS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
texts = st.sampled_from(TEXTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ids = st.sampled_from([b"", bytes(8), bytes(16), b"\1" * 8, b"\1" * 16, b"\2" * 16, b"\1" * 15]) | st.binary(max_size=20)
scalars = st.none() | st.booleans() | st.sampled_from(INTEGERS) | st.floats() | texts


def scalar(draw: st.DrawFn, of: Any) -> Any:
    kind = of.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return draw(ids) if of.type == FieldDescriptor.TYPE_BYTES else draw(texts)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return draw(st.booleans())
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return draw(st.sampled_from([0.0, -0.0, 1e308, float("inf"), float("nan")]))
    low, high = _BOUNDS[kind]
    return min(max(draw(st.sampled_from(INTEGERS)), low), high)


def fill(draw: st.DrawFn, message: Message, depth: int = 0) -> None:
    """Fill some fields of `message`: repeated ones several times, nested ones down to a limit."""
    fields: list[Any] = list(message.DESCRIPTOR.fields)
    frames = [
        one
        for one in fields
        if one.name in ("resource_spans", "scope_spans", "spans", "resource_logs", "scope_logs", "log_records")
    ]
    for one in frames + draw(st.lists(st.sampled_from(fields), max_size=4)):
        if one.message_type is None:
            if one.is_repeated:
                getattr(message, one.name).append(scalar(draw, one))
            else:
                setattr(message, one.name, scalar(draw, one))
        elif depth < 8:
            if one.is_repeated:
                for _ in range(draw(st.integers(1, 2))):
                    fill(draw, getattr(message, one.name).add(), depth + 1)
            else:
                part = getattr(message, one.name)
                part.SetInParent()
                fill(draw, part, depth + 1)


@st.composite
def otlp(draw: st.DrawFn, kind: type[Message]) -> Message:
    message = kind()
    fill(draw, message)
    return message


targets = st.sampled_from(
    [
        {"trace_id": "0af7651916cd43dd8448eb211c80319c"},
        {"trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "b7ad6b7169203331"},
        {"response_id": "chatcmpl-1"},
        {"conversation_id": "c", "turn": 2},
        {"episode_id": "e"},
        {"join_key": {"ns": "ticket", "id": "T-42"}},
    ]
)
outcomes = st.fixed_dictionaries(
    {"target": targets, "name": st.sampled_from(["thumb", "edit", "csat"]), "source": st.just({"kind": "human", "id": "u"})},
    optional={
        "value": st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
        "edit": st.fixed_dictionaries({"final_text": texts}, optional={"original_sha256": texts}),
        "event_id": texts,
        "op": st.sampled_from(["set", "retract"]),
        "occurred_at": texts | st.integers() | st.just("2026-11-01T10:00:00Z"),
        "comment": texts,
        "metadata": st.dictionaries(texts, scalars, max_size=3),
    },
)
KEY = OutcomeKey("k1", b"0123456789abcdef0123456789abcdef")
NOW_S = 1_790_000_000
TOKEN = mint_token(KEY, TokenClaims("acme", "11" * 16, ("thumb", "edit"), NOW_S, NOW_S + 86_400, "t1"))
pages = st.fixed_dictionaries(
    {"token": st.sampled_from([TOKEN, TOKEN[:-1], "nsf1.e30.AAAA", ""]), "name": st.sampled_from(["thumb", "edit", "csat"])},
    optional={"value": scalars, "edit": st.dictionaries(texts, scalars, max_size=2), "about": texts, "comment": texts},
)


@dataclass(frozen=True, slots=True)
class Sent:
    """One input."""

    path: str
    body: bytes
    headers: Sequence[tuple[bytes, bytes]]
    method: str = "POST"
    query: bytes = b""


@st.composite
def examples(draw: st.DrawFn) -> tuple[str, bytes, str]:
    """Path, body and content type of a well-formed request."""
    match draw(st.sampled_from([TRACES, TRACES, LOGS, LOGS, OUTCOMES, BROWSER])):
        case str(path) if path in (TRACES, LOGS):
            message = draw(otlp(ExportTraceServiceRequest if path == TRACES else ExportLogsServiceRequest))
            if draw(st.booleans()):
                return path, message.SerializeToString(), PROTOBUF
            return path, json.dumps(_otlp_json(message)).encode(), JSON
        case path if path == OUTCOMES:
            batch = draw(st.lists(outcomes, min_size=1, max_size=3))
            return path, json.dumps(batch[0] if len(batch) == 1 else {"outcomes": batch}).encode(), JSON
        case path:
            return path, json.dumps(draw(pages)).encode(), "text/plain"


def _otlp_json(message: Message) -> Any:
    """OTLP/JSON: the JSON form of protobuf, with ids in hexadecimal and enums as numbers."""
    data = json_format.MessageToDict(message, use_integers_for_enums=True)
    waiting: list[Any] = [data]
    while waiting:
        node = waiting.pop()
        for name, value in list(node.items()) if isinstance(node, dict) else list(enumerate(node)):
            if name in ("traceId", "spanId", "parentSpanId"):
                node[name] = base64.b64decode(value).hex()
            elif isinstance(value, dict | list):
                waiting.append(value)
    return data


# --- broken forms -------------------------------------------------------------------------------------------------------
AUTHORIZATIONS = (
    [b"Bearer key-of-acme"] * 40
    + [b"Bearer key-of-globex"] * 30
    + [b"Bearer x", b"Basic a", b"", b"bearer  key-of-acme", b"\xff"]
)
TYPES = [
    PROTOBUF.encode(),
    JSON.encode(),
    b"text/plain",
    b"application/json; charset=utf-16",
    b"",
    b"x",
    b"application/grpc",
    b"\xff/\xfe",
]
ENCODINGS = [b"gzip", b"zstd", b"identity", b"", b"br", b"gzip, gzip", b"deflate", b"\xff"]
LENGTHS = [b"0", b"5", b"-1", b"1e3", b"99999999999999999999", "\u0665".encode(), b"", b"1048577"]
ODD_JSON: list[Any] = [
    None,
    True,
    [],
    {},
    "",
    "x" * 5000,
    1e999,
    float("nan"),
    -0.0,
    10**400,
    "\ud800",
    [[[[]]]],
    {"a": {"a": {}}},
    "0x1f",
    -1,
]


def forms(path: str, body: bytes, form: str, chance: random.Random) -> Iterator[Sent]:
    """The request as it is, then with more and more of it broken."""
    yield _sent(path, body, form.encode(), chance, lies=False)
    while True:
        broken = body
        for _ in range(chance.choice([0, 1, 1, 2, 4])):
            broken = chance.choice([_flip, _cut, _double, _splice, _lengthen, _odd_json, _deep])(broken, chance)
        yield _sent(path, broken, form.encode(), chance, lies=chance.random() < 0.5)


def _sent(path: str, body: bytes, form: bytes, chance: random.Random, *, lies: bool) -> Sent:
    headers = [(b"authorization", chance.choice(AUTHORIZATIONS)), (b"content-type", form)]
    encoding = chance.choice([b"", b"", b"gzip", b"zstd"])
    if encoding:
        body = gzip.compress(body, 1) if encoding == b"gzip" else zstandard.compress(body, 1)
        headers.append((b"content-encoding", encoding))
    method, query = "POST", b""
    if lies:
        match chance.randrange(7):
            case 0:
                headers[1] = (b"content-type", chance.choice(TYPES))
            case 1:
                headers.append((b"content-encoding", chance.choice(ENCODINGS)))
            case 2:
                headers.append((b"content-length", chance.choice(LENGTHS)))
            case 3:
                body = chance.choice([_flip, _cut, _double])(body, chance)
            case 4:
                headers.append((b"idempotency-key", chance.choice([b"", b"k", b"\xe9", b"x" * 300])))
            case 5:
                path = chance.choice(
                    [TRACES, LOGS, OUTCOMES, BROWSER, CONFIRM, "/metrics", "/outcome.js", "/healthz", "/%ff", ""]
                )
                method = chance.choice(["GET", "POST", "OPTIONS", "PUT", "HEAD"])
                query = chance.choice([b"", b"token=" + TOKEN.encode() + b"&name=thumb&value=true", body[:200]])
            case _:
                headers += [
                    (b"origin", chance.choice([b"https://app.example", b"null", b"\xff"])),
                    (b"x-forwarded-for", b"1.2.3.4, x"),
                ]
    return Sent(path, body, headers, method, query)


def _flip(body: bytes, chance: random.Random) -> bytes:
    changed = bytearray(body)
    for _ in range(chance.choice([1, 1, 3, 10]) if body else 0):
        changed[chance.randrange(len(body))] = chance.choice([0, 0x0A, 0x12, 0x7F, 0x80, 0xFF, chance.randrange(256)])
    return bytes(changed)


def _cut(body: bytes, chance: random.Random) -> bytes:
    start = chance.choice([0, 0, chance.randrange(len(body) + 1)])
    return body[start : chance.randrange(start, len(body) + 1)]


def _double(body: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(body) + 1)
    return body + body[start:] if chance.random() < 0.5 else body[:start] + body[start : start + 40] * 2 + body[start:]


def _splice(body: bytes, chance: random.Random) -> bytes:
    at = chance.choice([0, len(body), chance.randrange(len(body) + 1)])
    odd = chance.choice(
        [
            b"\x7b\x7c",
            b"\x08\x12",
            b"\x08\x0b",
            b"\x10\x85\x01",
            b"\x0d\1\2\3\4",
            b"\x0a\x80\x00",
            b"\x12\x10" + bytes(16),
            b"\xff" * 10,
            b"\x1f\x8b",
            b"null",
            b"\xed\xa0\x80",
            b"\x0d",
        ]
    )
    return body[:at] + odd + body[at:]


def _lengthen(body: bytes, chance: random.Random) -> bytes:
    """A length that is larger than the content, or that is written with more bytes than it needs."""
    at = chance.randrange(len(body) + 1)
    return (
        body[:at]
        + chance.choice([b"\x0a", b"\x12", b"\x1a"])
        + chance.choice([b"\x80\x80\x00", b"\xff\xff\xff\xff\x0f", b"\x85\x00"])
        + body[at:]
    )


def _odd_json(body: bytes, chance: random.Random) -> bytes:
    """One node of the JSON replaced by something else; a body that is not JSON stays as it is."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return body
    places: list[tuple[Any, Any]] = []
    waiting = [data]
    while waiting:
        node = waiting.pop()
        for name, value in (
            list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
        ):
            places.append((node, name))
            waiting.append(value)
    if not places:
        return json.dumps(chance.choice(ODD_JSON)).encode()
    node, name = chance.choice(places)
    node[name] = chance.choice(ODD_JSON)
    return json.dumps(data).encode()


def _deep(body: bytes, chance: random.Random) -> bytes:
    """Sometimes a nesting so deep that a recursive reader would crash."""
    if chance.random() < 0.9:
        return body
    if body.startswith(b"{"):
        return b'{"resourceSpans":' * chance.choice([90, 110, 2000]) + b"1" + b"}" * chance.choice([90, 110, 2000])
    inner = b""
    for _ in range(chance.choice([90, 110, 2000])):
        inner = b"\x2a" + _varint(len(inner)) + inner
    return b"\x0a" + _varint(len(inner)) + inner


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


# --- the collector, and what must hold ----------------------------------------------------------------------------------
class CheckingStream:
    """Takes records, and raises `AssertionError` for one that should never have been written."""

    append_bytes = 1 << 20
    num_records = 0

    def append(self, topic: str, records: Sequence[Record]) -> list[Offset]:
        for record in records:
            assert record.headers["ns-tenant"] in (b"acme", b"globex")
            assert all(isinstance(value, bytes) for value in record.headers.values())
            assert len(record.value) < MAX_RECORD_BYTES
            if topic == "ns.otlp_spans":
                _check_spans(record)
            elif topic in ("ns.otlp_logs", "ns.outcomes"):
                ExportLogsServiceRequest.FromString(record.value)
            else:
                assert topic == "ns.dlq"
                assert record.headers["ns-dlq-reason"]
        self.num_records += len(records)
        return [Offset(0, 0)] * len(records)

    def end_offsets(self, topic: str) -> dict[int, int]:
        return {0: self.num_records}

    def close(self) -> None: ...


def _check_spans(record: Record) -> None:
    request = ExportTraceServiceRequest.FromString(record.value)
    traces = {
        span.trace_id.hex().encode()
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    }
    assert traces == {record.key}, f"key {record.key!r}, but traces {traces}"


@dataclass
class Found:
    """What the collector did with the inputs."""

    inputs: int = 0
    by_grpc: int = 0
    server_errors: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    statuses: collections.Counter[str] = field(default_factory=collections.Counter)


class Fuzzer:
    """A collector in this process, and the clients that send to it."""

    def __init__(self) -> None:
        self.found, self.stream = Found(), CheckingStream()
        ring = KeyRing({tenant: [hash_key(f"key-of-{tenant}")] for tenant in ("acme", "globex")})
        counters = Counters(ring.tenants)
        redactors = {"globex": Redactor(Rules(), "secret")}
        writer = RecordWriter(self.stream, counters, redactors=redactors, clock_ns=lambda: NOW_S * 10**9)  # type: ignore[arg-type]
        self._receiver = Receiver(ring, counters, Admission(Budgets(1 << 30, 1 << 30, 1 << 30)), LIMIT_BYTES)
        browser = BrowserSettings(keys={"acme": [KEY]}, origins={"acme": ["https://app.example"]}, writes_per_minute=10**9)
        self._app = app_of(self._receiver, writer, browser=BrowserAccess(browser), clock_ns=lambda: NOW_S * 10**9)
        self._loop = asyncio.new_event_loop()
        self._grpc = GrpcServer(self._receiver, writer)
        port = self._loop.run_until_complete(self._grpc.start("127.0.0.1", 0))
        self._channel = self._loop.run_until_complete(self._connect(port))

    async def _connect(self, port: int) -> Any:
        return grpc.aio.insecure_channel(f"127.0.0.1:{port}")

    def close(self) -> None:
        self._loop.run_until_complete(self._channel.close())
        self._loop.run_until_complete(self._grpc.stop(1))
        self._receiver.close()
        self._loop.close()

    def send(self, inputs: Sequence[Sent]) -> None:
        """Send the inputs at once, and remember everything that must not happen."""
        self._loop.run_until_complete(self._send_all(inputs))

    async def _send_all(self, inputs: Sequence[Sent]) -> None:
        calls = [self._guarded(self._over_http, one) for one in inputs]
        calls += [self._guarded(self._over_grpc, one) for one in inputs[::GRPC_EVERY] if one.path in _GRPC]
        await asyncio.gather(*calls)

    async def _guarded(self, way: Callable[[Sent], Any], one: Sent) -> None:
        self.found.inputs += 1
        try:
            await way(one)
        except Exception:
            if len(self.found.crashes) < 20:
                self.found.crashes.append(f"{one!r:.2000}\n{traceback.format_exc()}")
            else:
                self.found.crashes.append("")

    async def _over_http(self, one: Sent) -> None:
        scope = {
            "type": "http",
            "method": one.method,
            "path": one.path,
            "raw_path": one.path.encode(),
            "query_string": one.query,
            "headers": list(one.headers),
            "http_version": "1.1",
            "scheme": "http",
            "server": ("127.0.0.1", 4318),
            "client": ("127.0.0.1", 9),
        }
        half = len(one.body) // 2
        chunks = [
            {"type": "http.request", "body": part, "more_body": more}
            for part, more in ((one.body[:half], True), (one.body[half:], False))
        ]
        said: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return chunks.pop(0) if chunks else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            said.append(message)

        await self._app(scope, receive, send)
        status, answer = said[0]["status"], b"".join(message.get("body", b"") for message in said[1:])
        self.found.statuses[str(status)] += 1
        if status not in SAID:
            self.found.server_errors.append(f"{status} {answer[:300]!r} to {one!r:.2000}")
        if status == 200 and one.method == "POST" and one.path in (TRACES, LOGS):
            _check_answer(one.path, dict(said[0]["headers"])[b"content-type"].decode(), answer)

    async def _over_grpc(self, one: Sent) -> None:
        self.found.by_grpc += 1
        metadata = [
            (name.decode(), value.decode("latin-1"))
            for name, value in one.headers
            if name == b"authorization" and value.isascii()
        ]
        try:
            await self._channel.unary_unary(_GRPC[one.path])(one.body, metadata=metadata, timeout=60)
            code = grpc.StatusCode.OK
        except grpc.aio.AioRpcError as error:
            code = error.code()
            if code not in SAID_BY_GRPC:
                self.found.server_errors.append(f"{code} {error.details()} to {one!r:.2000}")
        self.found.statuses[code.name] += 1


def _check_answer(path: str, form: str, answer: bytes) -> None:
    """An acknowledgement is the response message of the signal, in the format of the request."""
    response = ExportTraceServiceResponse() if path == TRACES else ExportLogsServiceResponse()
    if form == JSON:
        json_format.Parse(answer, response)
    else:
        assert form == PROTOBUF
        response.ParseFromString(answer)


def fuzz(num_inputs: int, *, seed: int) -> Found:
    """Send about `num_inputs`, the same for the same seed."""
    fuzzer = Fuzzer()

    @hypothesis.seed(seed)
    @settings(
        max_examples=-(-num_inputs // FORMS_PER_EXAMPLE),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(example=examples())
    def run(example: tuple[str, bytes, str]) -> None:
        if fuzzer.found.inputs >= num_inputs:
            return
        chance = random.Random(zlib.crc32(example[1]) + seed)
        every = forms(*example, chance)
        fuzzer.send([next(every) for _ in range(FORMS_PER_EXAMPLE)])

    try:
        while fuzzer.found.inputs < num_inputs:  # Hypothesis may stop early when it thinks that it has seen everything
            run()
            seed += 1
            run = hypothesis.seed(seed)(run)
    finally:
        fuzzer.close()
    return fuzzer.found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    began = time.monotonic()
    found = fuzz(arguments.inputs, seed=arguments.seed)
    for what in (*found.server_errors[:20], *found.crashes[:20]):
        print(what, end="\n\n", file=sys.stderr)
    print("answers:", dict(found.statuses.most_common()))
    figures = {
        "inputs": found.inputs,
        "by_grpc": found.by_grpc,
        "server_errors": len(found.server_errors),
        "crashes": len(found.crashes),
        "seconds": round(time.monotonic() - began, 1),
        "seed": arguments.seed,
        "python": platform.python_version(),
    }
    line = json.dumps(figures)
    if arguments.inputs >= 200_000:
        (ROOT / "benchmarks" / "fuzz.json").write_text(line + "\n", encoding="utf-8")
    print(line)
    return 1 if found.server_errors or found.crashes else 0


if __name__ == "__main__":
    sys.exit(main())
