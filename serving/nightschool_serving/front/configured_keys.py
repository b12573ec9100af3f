"""The tenants' API keys of a running server: those of nightschool.toml, as it is now."""

from __future__ import annotations

import asyncio
import logging
import signal
from pathlib import Path

from nightschool.config.follow import ConfigFollower, KeyChanges
from nightschool.config.reader import load_config
from nightschool.keys import KeyRing

CONFIG_VARIABLE = "NIGHTSCHOOL_CONFIG"

_logger = logging.getLogger(__name__)


def follow_keys(path: Path) -> KeyRing:
    """The keys of the configuration at `path`, kept up to date by a thread; in an event loop also at once on SIGHUP."""
    keys = {name: tenant.key_sha256 for name, tenant in load_config(path).tenants.items()}
    ring = KeyRing(keys)
    follower = ConfigFollower(path, KeyChanges(ring, keys, say=_logger.warning).apply, say=_logger.warning)
    follower.start()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, follower.look_now)
    return ring
