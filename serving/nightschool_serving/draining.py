"""The end of a server: new requests are refused, those that are being answered are finished, then the engine stops.

vLLM stops its engine first and its HTTP server after that: without this, requests in between get a 500 or an answer
without a token, and a health check says that all is well.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from nightschool_serving.state import Serving

_LOOK_SECONDS = 0.05


def drain_before_shutdown(engine_client: Any, serving: Serving) -> None:
    """Make `engine_client.shutdown`, which vLLM calls in a thread when it is told to stop, wait for the requests."""
    stop = engine_client.shutdown

    def shutdown(timeout: float | None = None) -> None:
        serving.draining = True
        deadline = time.monotonic() + (timeout or 0.0)
        # At the very end vLLM calls it once more, in the event loop, where waiting would stop the answers.
        while serving.in_progress and time.monotonic() < deadline and not _in_event_loop():
            time.sleep(_LOOK_SECONDS)
        if not serving.in_progress:
            _stop_reading(engine_client)
        stop(timeout=max(0.0, deadline - time.monotonic()))

    engine_client.shutdown = shutdown


def _stop_reading(engine_client: Any) -> None:
    """Cancel vLLM's task that reads what the engine puts out, when nobody waits for anything any more.

    vLLM cancels it after its engine has ended. By then the task has taken that end for a crash, and a person who pressed
    Ctrl-C reads a traceback.
    """
    reader = getattr(engine_client, "output_handler", None)
    if reader is not None and not reader.done():
        reader.get_loop().call_soon_threadsafe(reader.cancel)


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
