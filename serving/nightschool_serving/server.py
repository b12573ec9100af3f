"""vLLM's API server in this process; `__main__` replaces itself with this, with environment and arguments set.

vLLM starts its engine as a new process that imports this module too: so importing it runs nothing and loads nothing.
"""

from __future__ import annotations

import gc
import signal


def main() -> None:
    """Run until told to stop."""
    # It means "read the keys again" once the server runs; before that it must not end the start.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Importing vLLM allocates millions of objects that stay; garbage collection among them takes 1.5 s of the start.
    gc.disable()
    from vllm.entrypoints.launchers.api_server.entry import main as serve

    gc.freeze()
    gc.enable()
    serve()


if __name__ == "__main__":
    main()
