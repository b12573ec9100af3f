"""`nightschool episodes`: what it shows is what a night does, and it writes nothing."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from nightschool import semconv as names
from nightschool.outcomes.record import Outcome, to_logs_request
from nightschool.stream import Record
from nightschool.stream.sqlite import SqliteStream
from nightschool_nightly.commands.episodes import EpisodeRow, Preview, show
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


# Markup of rich, codes for a terminal, marks that turn the direction of text, and halves of characters.
ANY_TEXT = st.text() | st.text(alphabet="[]/xab\x1b\x9b\x07\r\u202e\u2028\ud800")


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(texts=st.lists(ANY_TEXT, min_size=8, max_size=8), tenant=ANY_TEXT)
def test_no_recorded_text_controls_the_terminal(texts: list[str], tenant: str) -> None:
    """Whatever was recorded in whichever column, all that is printed is printable."""
    trace_id, task, user, asked, answered, outcome, release, fate = texts
    row = EpisodeRow(trace_id, task, user, 1, asked, answered, (outcome,), False, release, fate)
    found = Preview("bank", "n", num_new_episodes=1, dropped={f"unknown-dialect ({tenant})": 1}, episodes=[row])
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        show(found, drops_only=False)
    assert all(line.isprintable() for line in printed.getvalue().split("\n"))


def test_outcomes_that_no_rubric_reads_are_named(folder: Path, run: Run) -> None:
    """A name that the app spells differently is shown with its count, and not only as an episode without an outcome."""
    said = Outcome({"response_id": "r-2"}, "quene [/x]\x1b", final_text="card", source_id="ann", occurred_at_ns=1000)
    other = Outcome({"response_id": "r-3"}, "other", value=True, source_id="ann", occurred_at_ns=1000)  # of a task without rubric
    with SqliteStream(folder / "stream.db", partitions=2) as stream:
        for one in (said, other):
            request = to_logs_request(one, tenant="bank", received_ns=1000)
            stream.append(names.TOPIC_OUTCOMES, [Record(one.key, request.SerializeToString(), HEADERS)])
    dropped = {one["reason"]: one["count"] for one in json.loads(run("--json").stdout)["dropped"]}
    unread = {name: count for name, count in dropped.items() if name.startswith("unread-outcome")}
    assert unread == {"unread-outcome (quene ?/x??)": 1}
    assert dropped[DropReason.NO_OUTCOME] == 1
    assert "quene ?/x??" in run("--drops").stdout


def test_an_unknown_tenant_is_one_line(folder: Path) -> None:
    """A mistake is a sentence and exit status 2."""
    command = [sys.executable, "-m", "nightschool", "episodes", "--config", "nightschool.toml", "--tenant", "nobody"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("nightschool episodes: tenant 'nobody' is not in nightschool.toml")
