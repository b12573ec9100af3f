"""What the routes of a running server share: `endpoint` makes it, `routes` uses it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from nightschool_serving.releases.adapter_cache import AdapterCache
from nightschool_serving.releases.engine import VllmEngine
from nightschool_serving.releases.replica import Replica
from nightschool_serving.releases.routing import RoutingTable
from nightschool_serving.telemetry.sender import Telemetry


@dataclass(slots=True)
class Serving:
    """Everything our routes need; `app.state.nightschool_serving`. It is there only if the plugin was loaded."""

    table: RoutingTable
    replica: Replica
    cache: AdapterCache
    engine: VllmEngine
    telemetry: Telemetry | None
    max_model_len: int
    """Tokens of prompt and answer together."""
    default_max_tokens: int
    """Longest answer to a chat request without a limit of its own; 0 for none."""
    tokenizer: str
    """SHA-256 of the base model's tokenizer.json, recorded together with token ids."""
    draining: bool = False
    """Whether the server was told to stop: it answers no new request."""
    in_progress: int = 0
    """Requests that were let in and are not answered yet."""
    tasks: tuple[asyncio.Task[None], ...] = ()
    """Held here because the event loop keeps only weak references to tasks."""

    @property
    def ready(self) -> bool:
        """Whether it is decided for every tenant what answers."""
        return self.replica.ready
