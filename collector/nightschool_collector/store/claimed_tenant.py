"""The tenant that a request names in its resources: the key alone decides, but a request that names another is a mistake."""

from __future__ import annotations

from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from nightschool import semconv
from nightschool.errors import shown
from nightschool_collector.request.turns import in_steps
from nightschool_collector.store.wire import fields

_NAME = semconv.TENANT_ID.encode()
_STEP_BYTES = 1 << 20
_MAX_BYTES = 64 << 10  # of a resource that is read: one of an app has a few hundred, and as messages it is 3 MB at most


def other_tenant(request: bytes, tenant: str) -> str:
    """A sentence if a resource of a checked protobuf request names another tenant than `tenant`; else empty."""
    if not _is_named(request):
        return ""
    for frame, start, end in fields(request, 0, len(request)):
        for number, at, stop in fields(request, start, end) if frame == 1 else ():
            if number == 1 and stop - at <= _MAX_BYTES and _NAME in request[at:stop]:
                for attribute in Resource.FromString(request[at:stop]).attributes:
                    named = attribute.value.string_value
                    if attribute.key == semconv.TENANT_ID and named != tenant:
                        return (
                            f"{semconv.TENANT_ID} names the tenant {shown(named)}, but the key is one of {tenant!r}: stored there"
                        )
    return ""


def _is_named(request: bytes) -> bool:
    steps = in_steps(range(0, len(request), _STEP_BYTES))
    return any(request.find(_NAME, start, start + _STEP_BYTES + len(_NAME)) >= 0 for start in steps)
