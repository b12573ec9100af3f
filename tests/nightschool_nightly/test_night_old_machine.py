"""A night and a server on a machine without bf16 instructions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from nightschool.keys import hash_key
from nightschool.registry.release import NIGHT
from tests.nightschool_nightly.night_workplace import MESSAGES, NIGHT_TIMEOUT_S, SETTINGS, TENANT, make_workplace, right_queue


@pytest.mark.vllm
@pytest.mark.slow
def test_an_old_machine_learns_and_serves_in_fp32(tmp_path: Path, unused_port: int) -> None:
    """Without bf16 instructions, which the variable takes away, night and server agree on fp32, and the release answers."""
    workplace = make_workplace(tmp_path)
    (tmp_path / "nightschool.toml").write_text(
        SETTINGS.replace("[serving]", f"[serving]\nport = {unused_port}") + f'key_sha256 = ["{hash_key("ns-bank-key")}"]\n'
    )
    old = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(workplace.command(), env=old, capture_output=True, text=True, timeout=NIGHT_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    release = workplace.registry.pointer(TENANT).stable
    assert release is not None, done.stdout
    night = json.loads((workplace.registry.release_folder(TENANT, release) / NIGHT).read_text())
    assert (night["dtype"], workplace.registry.manifest(TENANT, release).dtype) == ("float32", "float32")

    command = [sys.executable, "-m", "nightschool", "serve", "--config", str(tmp_path / "nightschool.toml")]
    log = tmp_path / "serving.log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, env=old, stdout=output, stderr=subprocess.STDOUT)
    try:
        answered_by, answer = first_answer(f"http://127.0.0.1:{unused_port}", server, log)
    finally:
        server.terminate()
        server.wait(NIGHT_TIMEOUT_S)
    assert "float32" in log.read_text().partition("\n")[0]
    assert answered_by == release
    assert answer.strip().lower() in {right_queue(number) for number in range(len(MESSAGES))}


def first_answer(url: str, server: subprocess.Popen[bytes], log: Path) -> tuple[str, str]:
    """What the server answers as soon as it is ready: the release, and the text."""
    messages = [{"role": "user", "content": f"Which queue: {MESSAGES[0]}, number 77?"}]
    body = json.dumps({"model": "nightschool", "messages": messages, "max_tokens": 4, "temperature": 0})
    headers = {"Authorization": "Bearer ns-bank-key", "Content-Type": "application/json"}
    deadline = time.monotonic() + NIGHT_TIMEOUT_S
    while True:
        assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(f"{url}/health").close()
            break
        except urllib.error.URLError:
            time.sleep(0.3)
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/chat/completions", body.encode(), headers)) as reply:
        return reply.headers["x-nightschool-release"], json.load(reply)["choices"][0]["message"]["content"]
