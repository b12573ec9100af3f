"""`nightschool episodes`: what it shows is what a night does, and it writes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from nightschool import semconv as names
from nightschool.outcomes.record import Outcome, to_logs_request
from nightschool.stream import Record
from nightschool.stream.sqlite import SqliteStream
from nightschool_nightly.episodes.reasons import DropReason, reason_of
from tests.warm_python import WarmPython

RUBRIC = 'task = "triage"\n[[items]]\nname = "right"\nkind = "outcome"\noutcome = "queue"\n'
CONFIG = '[stream]\nurl = "sqlite:stream.db"\n[registry]\npath = "registry"\n[night]\nstate = "nights"\n[tenants.bank]\nrubrics = ["r.toml"]\n'
HEADERS = {names.HEADER_TENANT: b"bank"}


def span(number: int, *, question: str, answer: str, task: str = "triage") -> Record:
    def messages(role: str, text: str) -> str:
        return json.dumps([{"role": role, "parts": [{"type": "text", "content": text}]}])

    request, trace = ExportTraceServiceRequest(), number.to_bytes(16, "big")
    added = (
        request.resource_spans.add().scope_spans.add().spans.add(trace_id=trace, span_id=trace[8:], start_time_unix_nano=number)
    )
    attributes = {
        names.GEN_AI_OPERATION_NAME: "chat",
        names.GEN_AI_INPUT_MESSAGES: messages("user", question),
        names.GEN_AI_OUTPUT_MESSAGES: messages("assistant", answer),
        names.GEN_AI_RESPONSE_ID: f"r-{number}",
        names.TASK: task,
        names.SUBJECT: f"user-{number}",
    }
    added.attributes.extend(KeyValue(key=key, value=AnyValue(string_value=value)) for key, value in attributes.items())
    return Record(trace.hex().encode(), request.SerializeToString(), HEADERS)


def outcome(number: int, text: str, at: int) -> Record:
    said = Outcome({"response_id": f"r-{number}"}, "queue", final_text=text, source_id="ann", occurred_at_ns=at)
    return Record(said.key, to_logs_request(said, tenant="bank", received_ns=at).SerializeToString(), HEADERS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four traces: one corrected twice, one without an outcome, one of a task without rubric, one of the doctor."""
    (tmp_path / "nightschool.toml").write_text(CONFIG)
    (tmp_path / "r.toml").write_text(RUBRIC)
    with SqliteStream(tmp_path / "stream.db", partitions=2) as stream:
        spans = [span(1, question="where is \x1b[31mmy [bold]card", answer="loan"), span(2, question="hello", answer="card")]
        spans += [span(3, question="hi", answer="x", task="other"), span(4, question="hi", answer="x", task=names.DOCTOR_TASK)]
        stream.append(names.TOPIC_SPANS, spans)
        stream.append(names.TOPIC_OUTCOMES, [outcome(1, "fraud", 1000), outcome(1, "card", 2000)])
    return tmp_path


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(folder: Path, warm_python: WarmPython) -> Run:
    """What `nightschool episodes` becomes, in the folder of the configuration."""
    command = ["nightschool_nightly.commands.episodes", "--config", "nightschool.toml", "--tenant", "bank"]
    return lambda *arguments: warm_python.run(*command, *arguments, cwd=folder)


def files(folder: Path) -> Sequence[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.name.startswith("stream.db"))


def test_json_tells_every_new_episode_with_its_fate(folder: Path, run: Run) -> None:
    """Nothing is shortened; each episode has its fate, and each reason what to do. Nothing is written."""
    before = files(folder)
    done = run("--json")
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    first, *others = found["episodes"]
    assert first | {"fate": ""} == {
        "trace_id": f"{1:032x}",
        "task": "triage",
        "user": "user-1",
        "num_messages": 1,
        "asked": "where is \x1b[31mmy [bold]card",
        "answered": "loan",
        "outcomes": ["queue: fraud -> card (human ann)"],
        "has_tokens": False,
        "release": None,
        "fate": "",
    }
    assert first["fate"] in ("learned from", "tests only")
    assert [one["fate"] for one in others] == [DropReason.NO_OUTCOME, DropReason.NO_RUBRIC, DropReason.DOCTOR]
    assert (found["num_new_episodes"], found["num_train"] + found["num_holdout"]) == (4, 1)
    reasons = {one["reason"]: one for one in found["dropped"]}
    assert {name: one["count"] for name, one in reasons.items()} == {
        DropReason.NO_OUTCOME: 1,
        DropReason.NO_RUBRIC: 1,
        DropReason.DOCTOR: 1,
    }
    assert reasons[DropReason.NO_RUBRIC]["remedy"] == reason_of(DropReason.NO_RUBRIC).remedy
    assert files(folder) == before


def test_tables_are_for_a_person(run: Run) -> None:
    """Recorded text stays text: neither markup nor terminal codes in it do anything. --limit and --drops show less."""
    shown = run("--limit", "2").stdout
    assert "the first 2 of 4 new episodes" in shown and "queue: fraud -> card" in shown
    assert "\x1b" not in shown and "[bold]card" in " ".join(shown.split())
    drops = run("--drops").stdout
    assert "new episodes" in drops and "hello" not in drops and "task-without-rubric" in drops


def test_an_unknown_tenant_is_one_line(folder: Path) -> None:
    """A mistake is a sentence and exit status 2."""
    command = [sys.executable, "-m", "nightschool", "episodes", "--config", "nightschool.toml", "--tenant", "nobody"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("nightschool episodes: tenant 'nobody' is not in nightschool.toml")
