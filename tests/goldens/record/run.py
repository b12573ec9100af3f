"""Records goldens: `python tests/goldens/record/run.py [DIALECT ...]`, all of them without a name. Needs uv, and npm for vercel.

Each dialect's own package runs in an environment of its own under `var/goldens`, pinned by `pins/`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

from server import Server

RECORD = Path(__file__).parent
GOLDENS = RECORD.parent
ENVIRONMENTS = GOLDENS.parents[1] / "var" / "goldens"
OURS = "nightschool_tracer"


def main(dialects: list[str]) -> None:
    pinned = sorted({path.stem for path in (RECORD / "pins").iterdir()} | {OURS})
    for dialect in dialects or pinned:
        record(dialect)


def record(dialect: str) -> None:
    """Run one script against a server of its own and keep what it exported."""
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    subprocess.run(command(dialect), check=True, env={**os.environ, "GOLDEN_URL": server.url}, timeout=300)
    server.shutdown()
    server.server_close()
    folder = GOLDENS / dialect
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for kind, bodies in (("traces", server.traces), ("logs", server.logs)):
        for number, body in enumerate(bodies):
            (folder / f"{kind}-{number}.pb").write_bytes(body)
    print(dialect, f"{len(server.traces)} trace requests, {len(server.logs)} log requests")


def command(dialect: str) -> list[str]:
    """What runs the script of a dialect; makes its environment first."""
    if dialect == OURS:
        return [sys.executable, str(RECORD / f"record_{dialect}.py")]
    folder = ENVIRONMENTS / dialect
    if (RECORD / f"record_{dialect}.mjs").exists():
        if not (folder / "node_modules").exists():
            shutil.copytree(RECORD / "pins" / dialect, folder, dirs_exist_ok=True)
            subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, check=True)
        for script in (f"record_{dialect}.mjs", "vercel_conversation.mjs"):  # beside node_modules, where node looks for packages
            shutil.copy(RECORD / script, folder)
        return ["node", str(folder / f"record_{dialect}.mjs")]
    python = folder / "bin" / "python"
    if not python.exists():
        uv = shutil.which("uv") or str(Path(sys.executable).parent / "uv")
        subprocess.run([uv, "venv", "--quiet", "--python", "3.11", str(folder)], check=True)
        pins = str(RECORD / "pins" / f"{dialect}.txt")
        subprocess.run([uv, "pip", "install", "--quiet", "--no-deps", "--python", str(python), "-r", pins], check=True)
    return [str(python), str(RECORD / f"record_{dialect}.py")]


if __name__ == "__main__":
    main(sys.argv[1:])
