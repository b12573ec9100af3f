"""Hops of the configuration: the file with its tenant and rubrics, and the API key."""

from __future__ import annotations

import uuid

from nightschool import semconv as names
from nightschool.config.reader import load_config
from nightschool.errors import ConfigError, NightError, RubricError
from nightschool.keys import KeyRing, hash_key
from nightschool_nightly.doctor.findings import BrokenHopError, Passed
from nightschool_nightly.doctor.visit import Visit
from nightschool_nightly.rewards.load import load_rubrics


def check_configuration(visit: Visit) -> Passed:
    """nightschool.toml can be read and has the tenant, and the tenant has rubrics."""
    try:
        config = load_config(visit.options.config)
        tenants = sorted(config.tenants)
        if visit.options.tenant is None and len(tenants) != 1:
            raise ConfigError(f"{visit.options.config} has the tenants {', '.join(tenants) or 'none'}; name one with --tenant")
        tenant = visit.options.tenant or tenants[0]
        config.tenant(tenant)
        rubrics = load_rubrics(config, tenant)
    except (ConfigError, RubricError, NightError) as error:
        raise BrokenHopError(str(error), "correct the file; 'nightschool config' prints every setting") from error
    visit.config, visit.tenant, visit.rubrics = config, tenant, rubrics
    wanted = {name for rubric in rubrics.values() for name in rubric.outcome_names}
    visit.outcome_ids = {name: f"{names.DOCTOR_TASK}-{uuid.uuid4().hex}" for name in sorted(wanted) or [names.DOCTOR_TASK]}
    return Passed(f"tenant {tenant}, stream {config.stream.url}, rubrics for {', '.join(sorted(rubrics))}")


def check_key(visit: Visit) -> Passed:
    """The API key is one of the tenant's, by the configuration."""
    key, hashes = visit.options.key, {name: tenant.key_sha256 for name, tenant in visit.config.tenants.items()}
    if not key:
        raise BrokenHopError(
            "no API key was given",
            f"put the tenant's key into NIGHTSCHOOL_API_KEY; 'nightschool key --tenant {visit.tenant}' makes one",
        )
    owner = KeyRing(hashes).tenant_of(f"Bearer {key}")
    if owner is None:
        raise BrokenHopError(
            "the key is no tenant's",
            f"check that the key was copied whole; if it is a new key of this tenant, put its SHA-256 {hash_key(key)} into"
            f" [tenants.{visit.tenant}] key_sha256 and restart collector and serving",
        )
    if owner != visit.tenant:
        raise BrokenHopError(
            f"the key is of tenant {owner}, not {visit.tenant}", f"use a key of {visit.tenant}, or --tenant {owner}"
        )
    visit.key = key
    return Passed(f"a key of {visit.tenant}")
