"""vLLM's API server in this process; `__main__` replaces itself by this with the environment and arguments it needs.

vLLM starts its engine as a new process that imports this module too, so the body is guarded and the top imports nothing.
"""

from __future__ import annotations

import gc


def main() -> None:
    """Run until told to stop."""
    # Importing vLLM allocates millions of objects that stay; collecting among them takes 1.5 s of the start.
    gc.disable()
    from vllm.entrypoints.launchers.api_server.entry import main as serve

    gc.freeze()
    gc.enable()
    serve()


if __name__ == "__main__":
    main()
