"""How long to wait, and which endpoints are addresses."""

from __future__ import annotations

import pytest

from nightschool.errors import ConfigError
from nightschool.sdk.export.delivery import Delivery, parse_endpoint, parse_retry_after, refusal_of, wait_before_retry_s


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("3", 3.0),
        ("0.5", 0.5),
        ("-1", 0.0),
        ("100000", 300.0),
        ("soon", None),
        ("nan", None),
        ("Thu, 01 Jan 1970 00:01:10 GMT", 10.0),
        ("Thu, 01 Jan 1970 00:00:10 GMT", 0.0),
    ],
)
def test_retry_after_is_read_in_both_forms(value: str | None, seconds: float | None) -> None:
    """Retry-After is seconds or a date, never below 0 nor above 300; what is not understood counts as absent."""
    assert parse_retry_after(value, now_s=60.0) == seconds


def test_back_off_doubles_to_half_a_minute() -> None:
    """Without Retry-After the wait doubles from 0.5 s to 30 s, spread over its upper half."""
    waits = [wait_before_retry_s(attempt, retry_after_s=None, hurry=False, jitter=1.0) for attempt in range(9)]
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert wait_before_retry_s(3, retry_after_s=None, hurry=False, jitter=0.0) == 2.0


def test_hurry_cuts_our_back_off_but_not_the_servers_wish() -> None:
    """In a flush our own wait is at most 0.5 s; a Retry-After is kept."""
    assert wait_before_retry_s(8, retry_after_s=None, hurry=True, jitter=1.0) == 0.5
    assert wait_before_retry_s(8, retry_after_s=7.0, hurry=True, jitter=1.0) == 7.0


def test_endpoints() -> None:
    """An endpoint is an http or https URL with an optional port and path prefix."""
    assert parse_endpoint("http://127.0.0.1:4318") == (False, "127.0.0.1", 4318, "")
    assert parse_endpoint("https://collect.example/otel/") == (True, "collect.example", None, "/otel")


@pytest.mark.parametrize("endpoint", ["", "localhost:4318", "ftp://a", "http://", "http://a:x", "http://a?b=c", None])
def test_a_wrong_endpoint_is_a_clear_error(endpoint: str) -> None:
    """What is not the URL of a collector is refused at the start, with what was got and an example."""
    with pytest.raises(ConfigError, match=r"endpoint is .*http://127\.0\.0\.1:4318"):
        Delivery(endpoint, "key")


def test_a_refusal_is_told_in_words() -> None:
    """OTLP refuses with a google.rpc.Status in protobuf, and the log gets its message; other bodies stay as they are."""
    status = b"\x08\x03" + b"\x12\x60" + b"no tenant has this key; ".ljust(96, b".")
    assert refusal_of(status, "application/x-protobuf") == "no tenant has this key; ".ljust(96, ".")
    assert refusal_of(b"broken \xff", "application/x-protobuf") == "broken \ufffd"
    assert refusal_of(b"<html>", "text/html") == "<html>"
