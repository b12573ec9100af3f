"""The examples of the documentation, run as they are printed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from nightschool.outcomes.record import _FIELDS
from nightschool_nightly.episodes.reasons import DropReason

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "outcomes.md").read_text(encoding="utf-8")
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl on the PATH")


@pytest.fixture
def url(collector: Any) -> Iterator[str]:
    """The collector behind a real socket."""
    server = uvicorn.Server(uvicorn.Config(collector.app, port=0, log_level="error", ws="none", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@needs_curl
def test_the_curl_line_of_the_documentation_does_what_it_prints(collector: Any, url: str) -> None:
    """The first block is run as it is printed, and its last line is the answer."""
    (block,) = re.findall(r"^```console\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    *command, answer = block.removeprefix("$ ").strip().splitlines()
    script = "\n".join(command).replace("http://127.0.0.1:4318", url)
    environment = {"PATH": "/usr/bin:/bin", "NIGHTSCHOOL_API_KEY": collector.keys["acme"]}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == (answer, "")
    assert len(collector.stored("ns.outcomes")) == 1


@needs_curl
def test_the_shell_example_sends_what_it_says(collector: Any, url: str) -> None:
    """All is accepted except the copy, which is a duplicate, and the item without a value, which is rejected."""
    environment = {"PATH": "/usr/bin:/bin", "NIGHTSCHOOL_API_KEY": collector.keys["acme"], "COLLECTOR": url}
    script = str(ROOT / "examples" / "outcomes" / "outcomes.sh")
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, check=True, timeout=60)
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    statuses = [item["status"] for answer in answers for item in answer.get("outcomes", [answer])]
    assert statuses == ["accepted", "duplicate", *["accepted"] * 6, "rejected"]
    assert len(collector.stored("ns.outcomes")) == 7


def test_the_documented_fields_are_those_there_are() -> None:
    """The table of fields names every field that is accepted, and no other."""
    (table,) = re.findall(r"^\| field \| required \|.*?\n\n", PAGE, flags=re.DOTALL | re.MULTILINE)
    named = {name for row in table.strip().splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == _FIELDS


def test_the_documented_drop_reasons_exist() -> None:
    """Every count that the page explains is one that a night prints."""
    named = {"ambiguous-outcome", "event-id-used-twice", "edit-not-measured", "outcome-not-settled", "outcome-without-trace"}
    for name in (*named, "orphaned-outcome"):
        assert f"`{name}`" in PAGE
        assert name in set(DropReason)
