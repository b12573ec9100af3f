"""HTTP requests that always end: each has a timeout, and a failure is an answer with status 0."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nightschool.sdk.export.delivery import parse_endpoint


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back from a server, or why nothing did."""

    status: int
    """HTTP status; 0 when there was no answer."""
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Names in lower case."""
    reason: str = ""
    """Why there was no answer."""

    @property
    def summary(self) -> str:
        """The status with the first words of the body, or why there was none."""
        return f"{self.status} {self.body[:200].decode(errors='replace').strip()}" if self.status else self.reason

    def json(self) -> Any:
        """The body as JSON; None when it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


def ask(
    method: str, url: str, path: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None, timeout_s: float
) -> Answer:
    """One request to `path` below `url`, on a connection of its own."""
    secure, host, port, prefix = parse_endpoint(url)
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(host, port, timeout=timeout_s)
    try:
        connection.request(method, prefix + path, body, dict(headers or {}))
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, response.read(), found)
    except TimeoutError:
        return Answer(0, reason=f"no answer within {timeout_s:.0f} s")
    except (OSError, http.client.HTTPException) as error:
        return Answer(0, reason=f"{type(error).__name__}: {error}")
    finally:
        connection.close()
