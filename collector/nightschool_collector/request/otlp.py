"""OTLP over HTTP: requests from bytes, responses and errors to bytes, in the content type that the client speaks."""

from __future__ import annotations

from enum import StrEnum

from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from starlette.responses import Response

from nightschool_collector.request.body_count import BodyCount
from nightschool_collector.request.json_count import JsonCount
from nightschool_collector.request.protobuf_count import ProtobufCount
from nightschool_collector.request.refusal import UNSUPPORTED, RefusedError

# The google.rpc.Code for each HTTP status that we answer with.
_CODES = {400: 3, 401: 16, 413: 3, 415: 3, 503: 14}


class Format(StrEnum):
    """A content type of OTLP/HTTP."""

    PROTOBUF = "application/x-protobuf"
    JSON = "application/json"


def format_of(content_type: str | None) -> Format:
    """The format that a Content-Type header names."""
    try:
        return Format((content_type or "").partition(";")[0].strip().lower())
    except ValueError:
        raise RefusedError(
            UNSUPPORTED, f"Content-Type is {content_type or 'missing'}; allowed are {' and '.join(Format)}"
        ) from None


def count_of(content_type: str | None) -> BodyCount:
    """A count of what a body of this Content-Type holds; `RefusedError` (415) if OTLP/HTTP has none such."""
    return JsonCount() if format_of(content_type) is Format.JSON else ProtobufCount()


def answer(message: Message, form: Format) -> Response:
    """The message as a response with status 200."""
    return Response(_encode(message, form), media_type=form)


def refuse(error: RefusedError, content_type: str | None) -> Response:
    """The error as a `Status` message, as OTLP specifies; in JSON, which people can read, if the format is unknown."""
    try:
        form = format_of(content_type)
    except RefusedError:
        form = Format.JSON
    status = Status(code=_CODES[error.status], message=error.message)
    return Response(_encode(status, form), status_code=error.status, media_type=form, headers=error.headers)


def _encode(message: Message, form: Format) -> bytes:
    if form is Format.PROTOBUF:
        return message.SerializeToString()
    return json_format.MessageToJson(message, indent=None).encode()
