"""Builds the official OpenTelemetry Collector of `deploy/otelcol/builder.yaml` once, and runs it as a process."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from nightschool.registry.base_model import cache_folder

BUILDER_YAML = Path(__file__).resolve().parents[1] / "deploy" / "otelcol" / "builder.yaml"
START_TIMEOUT_S = 30.0


def why_not_buildable() -> str | None:
    """What is missing to build the collector; None when it is built already or can be."""
    return (
        None if _binary().is_file() or shutil.which("go") else "the official collector is built with Go, which is not on the PATH"
    )


def build_otelcol() -> Path:
    """The collector's binary in the user's cache. The first call for a builder.yaml builds it: 3 minutes on 2 cores.

    `RuntimeError` when Go is missing or the build fails, with the end of what the builder printed.
    """
    binary = _binary()
    if binary.is_file():
        return binary
    if reason := why_not_buildable():
        raise RuntimeError(reason)
    binary.parent.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{binary.parent.name}-", dir=binary.parent.parent))
    try:
        text = BUILDER_YAML.read_text(encoding="utf-8")
        _run(["go", "install", f"go.opentelemetry.io/collector/cmd/builder@{_version(text)}"], draft)
        (draft / "builder.yaml").write_text(text, encoding="utf-8")
        _run([str(draft / "bin" / "builder"), "--config", "builder.yaml"], draft)
        _publish(draft / "out" / _name(text), binary)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return binary


@contextmanager
def run_otelcol(
    config: Path, folder: Path, *, environment: Mapping[str, str] | None = None, ready_url: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A running collector; `ready_url` is one of its OTLP routes, and any HTTP answer of it means that it listens."""
    binary, log = build_otelcol(), folder / "otelcol.log"
    with log.open("ab") as sink:
        process = subprocess.Popen(
            [str(binary), "--config", str(config)], stdout=sink, stderr=sink, env={**os.environ, **(environment or {})}
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(ready_url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the official collector did not start:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=1).close()
    except urllib.error.HTTPError as refused:
        refused.close()  # a status is an answer
    except OSError:
        return False
    return True


def _binary() -> Path:
    """Its place in the cache, which the content of builder.yaml decides."""
    text = BUILDER_YAML.read_text(encoding="utf-8")
    return cache_folder() / f"otelcol-{_version(text)}-{hashlib.sha256(text.encode()).hexdigest()[:12]}" / _name(text)


def _version(text: str) -> str:
    (version,) = set(re.findall(r"- gomod: \S+ (v\S+)", text))  # builder and all modules are of one version
    return str(version)


def _name(text: str) -> str:
    named = re.search(r"^  name: (\S+)", text, re.MULTILINE)
    assert named is not None, f"{BUILDER_YAML} names no distribution"
    return named[1]


def _run(command: list[str], folder: Path) -> None:
    environment = {**os.environ, "GOBIN": str(folder / "bin"), "GOFLAGS": "-buildvcs=false"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-4000:]}")


def _publish(built: Path, binary: Path) -> None:
    """Put the binary in its place by one rename, so that nobody ever runs half a file."""
    binary.parent.mkdir(parents=True, exist_ok=True)
    partial = binary.with_name(f".{binary.name}.{os.getpid()}")
    shutil.copy2(built, partial)
    partial.replace(binary)
