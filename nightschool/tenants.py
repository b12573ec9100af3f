"""Names of tenants. They become folders, keys and adapter names, so one place checks what a name may be."""

from __future__ import annotations

import re

from nightschool.errors import ConfigError

_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def check_tenant(tenant: str) -> str:
    """Return `tenant` if it is a legal name, else raise `ConfigError`. Only such names may become part of a path."""
    if not isinstance(tenant, str) or not _TENANT.fullmatch(tenant):
        raise ConfigError(
            f"tenant {tenant!r} is not a tenant name; allowed are 1 to 63 of a-z, 0-9 and '-', not starting with '-'"
        )
    return tenant
