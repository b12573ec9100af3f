"""Reads request bodies within bounds: the size of one, the time for one, and the bytes held for a tenant and in all."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """What the guard holds at most."""

    body_bytes: int = 16 << 20
    """One body."""
    seconds: float = 30.0
    """From the end of the headers to the end of the body: 16 MiB at half a megabyte a second."""
    tenant_bytes: int = 32 << 20
    """Bodies of one tenant, from their first byte to the end of the answer: 64 prompts of 100,000 tokens."""
    total_bytes: int = 128 << 20
    """Bodies of all tenants: half of what a server may need for requests beside the model."""


def limits_for(max_model_len: int) -> BodyLimits:
    """The limits of a server for prompts of up to `max_model_len` tokens.

    A token is four characters or so, and a character at most six bytes of JSON: 64 bytes are far above both, and the
    megabyte is for tools and schemas. What is larger could never be answered, but is a hundred times as large once it
    is parsed.
    """
    return BodyLimits(body_bytes=min(BodyLimits().body_bytes, (1 << 20) + 64 * max_model_len))


class BodyRefused(Exception):  # noqa: N818 - named by what happened
    """A body that is not taken: the status and the sentence to answer with."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class BodyBudget:
    """The bytes of request bodies that are held now."""

    def __init__(self, limits: BodyLimits) -> None:
        self.limits = limits
        self._held: Counter[str] = Counter()
        self._total = 0

    def take(self, tenant: str, num_bytes: int) -> None:
        """Count bytes that have come; `BodyRefused` and nothing counted if they are too many."""
        limits = self.limits
        if self._held[tenant] + num_bytes > limits.tenant_bytes:
            raise BodyRefused(503, f"the tenant's requests hold {limits.tenant_bytes} bytes already, try again")
        if self._total + num_bytes > limits.total_bytes:
            raise BodyRefused(503, f"all requests together hold {limits.total_bytes} bytes already, try again")
        self._held[tenant] += num_bytes
        self._total += num_bytes

    def give_back(self, tenant: str, num_bytes: int) -> None:
        """Take back what `take` has counted."""
        self._held[tenant] -= num_bytes
        self._total -= num_bytes


class Body:
    """The body of one request, as far as it has come."""

    def __init__(self, budget: BodyBudget, tenant: str) -> None:
        self._budget, self._tenant = budget, tenant
        self._size = 0

    async def read(self, declared: str | None, receive: Receive) -> bytes:
        """The whole body; `BodyRefused`, or `ConnectionAbortedError` if the client went away."""
        limits = self._budget.limits
        if declared is not None and (not declared.isdecimal() or int(declared) > limits.body_bytes):
            raise BodyRefused(413, f"the body is too large: at most {limits.body_bytes} bytes are allowed")
        try:
            async with asyncio.timeout(limits.seconds):
                return await self._read(receive)
        except TimeoutError:
            raise BodyRefused(408, f"the body was not complete after {limits.seconds:g} s") from None

    async def _read(self, receive: Receive) -> bytes:
        limits, chunks = self._budget.limits, []
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise ConnectionAbortedError("the client went away before its whole body was read")
            chunk = message.get("body", b"")
            if self._size + len(chunk) > limits.body_bytes:
                raise BodyRefused(413, f"the body is too large: at most {limits.body_bytes} bytes are allowed")
            self._budget.take(self._tenant, len(chunk))
            self._size += len(chunk)
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)

    def close(self) -> None:
        """It is held no longer."""
        self._budget.give_back(self._tenant, self._size)
        self._size = 0
