"""vLLM's API server in this process; `__main__` replaces itself with this, with environment and arguments set.

vLLM starts its engine as a new process that imports this module too: so importing it runs nothing and loads nothing.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import NoReturn

_LOST_SECONDS = 5  # after Ctrl-C, until a start that goes on all the same is ended
_END_SECONDS = 10  # for connections that are still open when everything is answered


def main() -> None:
    """Run until told to stop."""
    # It means "read the keys again" once the server runs; before that it must not end the start.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # asyncio's own handler cancels a task, but vLLM starts its engine without giving way to the event loop.
    signal.signal(signal.SIGINT, _interrupt)
    try:
        _serve()
    except KeyboardInterrupt:
        # SIGINT or SIGTERM before the server runs; once it does, vLLM ends by itself.
        _end()


def _interrupt(number: int, frame: FrameType | None) -> None:
    threading.Thread(target=_end_if_it_was_lost, daemon=True).start()
    raise KeyboardInterrupt


def _end_if_it_was_lost() -> None:
    """While vLLM waits for its engine, pyzmq drops what a signal handler raises; then nobody would hear of the signal."""
    time.sleep(_LOST_SECONDS)
    _end()


def _end() -> NoReturn:
    """End at once: Python's own end may take the status away, where the signal came while an extension was imported."""
    for child in multiprocessing.active_children():
        child.terminate()
    print("nightschool serve: stopped while starting", file=sys.stderr, flush=True)
    os._exit(130)


def _serve() -> None:
    """What vLLM's own `main` does, with limits on connections."""
    # Importing vLLM allocates millions of objects that stay; garbage collection among them takes 1.5 s of the start.
    gc.disable()
    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from nightschool.connections import ConnectionLimits, limited_http

    gc.freeze()
    gc.enable()
    cli_env_setup()
    arguments = make_arg_parser(FlexibleArgumentParser(prog="nightschool serve")).parse_args()
    configure_logging_from_args(arguments)
    validate_parsed_serve_args(arguments)
    limits = {"http": limited_http(ConnectionLimits()), "timeout_graceful_shutdown": _END_SECONDS}
    uvloop.run(run_server(arguments, **limits))


if __name__ == "__main__":
    main()
