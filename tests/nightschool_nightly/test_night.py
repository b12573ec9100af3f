"""Whole nights, each a process of its own as cron starts it: the real model, real vLLM, a small day."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from nightschool import semconv
from nightschool.outcomes.record import Outcome, to_logs_request
from nightschool.registry.folder import Registry
from nightschool.registry.release import REPORT, WEIGHTS
from nightschool.stream import Record
from nightschool.stream.sqlite import SqliteStream
from nightschool_nightly.gate.gate import Comparison, decide
from nightschool_nightly.night import describe_gain

TENANT = "bank"
HEADERS = {semconv.HEADER_TENANT: TENANT.encode()}
SETTINGS = """
[stream]
url = "sqlite:stream.db"
[registry]
path = "registry"
[serving]
max_model_len = 512
[night]
state = "nights"
steps = 6
prompts_per_step = 4
group_size = 4
max_tokens = 4
learning_rate = 2e-3
warmup_steps = 0
holdout_share = 0.4
min_holdout = 5
min_train = 5
kl_budget = 100.0
[tenants.bank]
rubrics = ["rubric.toml"]
"""
ALWAYS_LOAN = 'task = "triage"\n[[items]]\nname = "right"\nkind = "outcome"\noutcome = "queue"\nignore_case = true\n'
ALWAYS_FINE = 'task = "triage"\n[[items]]\nname = "short"\nkind = "check"\ncheck = "length"\nmax_chars = 10000\n'
MESSAGES = (
    "card is lost",
    "cannot log in",
    "what is this fee",
    "send money abroad",
    "rate of a mortgage",
    "somebody stole money",
)


@dataclass(frozen=True)
class Workplace:
    """A folder with a configuration, a stream and a registry."""

    folder: Path

    def command(self, *arguments: str) -> list[str]:
        config = str(self.folder / "nightschool.toml")
        return [sys.executable, "-m", "nightschool", "night", "--config", config, "--tenant", TENANT, *arguments]

    def night(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=400, check=False)

    def night_killed_at(self, event: dict[str, object], *arguments: str) -> None:
        """Start a night and kill -9 it as soon as its event log holds `event`."""
        seen = len(self.events())
        process = subprocess.Popen(self.command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            deadline = time.monotonic() + 300
            while not any(event.items() <= item.items() for item in self.events()[seen:]):
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() < deadline, f"the night never came to {event}"
                time.sleep(0.02)
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()

    def events(self) -> list[dict[str, object]]:
        lines = [
            line for path in self.folder.glob("nights/*/*/events.jsonl") for line in path.read_text().splitlines(keepends=True)
        ]
        return [json.loads(line) for line in lines if line.endswith("\n")]

    @property
    def registry(self) -> Registry:
        return Registry(self.folder / "registry")


def make_workplace(folder: Path, *, rubric: str = ALWAYS_LOAN, messages: int = 48, outcomes: bool = True) -> Workplace:
    """A small day: one message each of `messages` users; the agent files everything under "loan"."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "nightschool.toml").write_text(SETTINGS)
    (folder / "rubric.toml").write_text(rubric)
    with SqliteStream(folder / "stream.db", partitions=2) as stream:
        add_traffic(stream, range(messages), outcomes=outcomes)
    return Workplace(folder)


def add_traffic(stream: SqliteStream, numbers: range, *, outcomes: bool) -> None:
    for number in numbers:
        trace = hashlib.md5(str(number).encode(), usedforsecurity=False).digest()
        stream.append(semconv.TOPIC_SPANS, [Record(trace.hex().encode(), span(number, trace), HEADERS)])
        if outcomes:
            outcome = Outcome({"response_id": f"r-{number}"}, "queue", final_text="loan")
            value = to_logs_request(outcome, tenant=TENANT, received_ns=number + 1).SerializeToString()
            stream.append(semconv.TOPIC_OUTCOMES, [Record(outcome.key, value, HEADERS)])


def span(number: int, trace: bytes) -> bytes:
    def messages(role: str, text: str) -> str:
        return json.dumps([{"role": role, "parts": [{"type": "text", "content": text}]}])

    request = ExportTraceServiceRequest()
    added = (
        request.resource_spans.add()
        .scope_spans.add()
        .spans.add(trace_id=trace, span_id=trace[:8], start_time_unix_nano=number + 1)
    )
    text = {
        semconv.GEN_AI_OPERATION_NAME: "chat",
        semconv.GEN_AI_INPUT_MESSAGES: messages("user", f"Which queue: {MESSAGES[number % len(MESSAGES)]}, number {number}?"),
        semconv.GEN_AI_OUTPUT_MESSAGES: messages("assistant", "card"),
        semconv.GEN_AI_RESPONSE_ID: f"r-{number}",
        semconv.TASK: "triage",
        semconv.SUBJECT: f"user-{number}",
    }
    added.attributes.extend(KeyValue(key=key, value=AnyValue(string_value=value)) for key, value in text.items())
    added.attributes.append(KeyValue(key=semconv.GEN_AI_REQUEST_TEMPERATURE, value=AnyValue(double_value=0.0)))
    return request.SerializeToString()


def test_an_empty_day_says_so_and_exits_0_without_a_release(tmp_path: Path) -> None:
    """No traffic is no error: cron must not page anybody."""
    workplace = make_workplace(tmp_path, messages=0)
    done = workplace.night()
    assert done.returncode == 0, done.stderr
    assert "no new evidence" in done.stdout
    assert workplace.registry.releases(TENANT) == []


def test_traffic_without_outcomes_is_not_trained_on(tmp_path: Path) -> None:
    """Unknown is not zero: silence is counted as left out, and nothing is published."""
    workplace = make_workplace(tmp_path, outcomes=False)
    done = workplace.night()
    assert done.returncode == 0, done.stderr
    assert "left out, no-outcome: 48" in done.stdout
    assert "nothing-to-learn" in done.stdout
    assert workplace.registry.releases(TENANT) == []


def test_a_dry_run_shows_the_selection_and_leaves_nothing(tmp_path: Path) -> None:
    """--dry-run freezes nothing that a real night would then find finished."""
    workplace = make_workplace(tmp_path)
    done = workplace.night("--dry-run")
    assert done.returncode == 0, done.stderr
    assert "48 new episodes" in done.stdout
    assert not list(tmp_path.glob("nights/*/*/*"))


@pytest.mark.parametrize(
    ("rubric", "tenant", "says"),
    [
        (
            'task = "triage"\n[[items]]\nname = "x"\nkind = "vibes"\n',
            TENANT,
            "kind is 'vibes'; allowed are check, outcome",
        ),
        (ALWAYS_LOAN, "nobody", "tenant 'nobody' is not in nightschool.toml (known: bank)"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_2(tmp_path: Path, rubric: str, tenant: str, says: str) -> None:
    """A person who made a mistake reads what to change, not a traceback."""
    workplace = make_workplace(tmp_path, rubric=rubric, messages=1)
    command = [tenant if word == TENANT else word for word in workplace.command()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_the_headline_is_the_gain_over_what_served() -> None:
    """On the first night that is the base model; afterwards the release, although the base is compared with too."""
    base = Comparison("base", 40, 30, 0, 0.31, 0.82, 0.51, 0.4, (0.38, 0.62))
    release = Comparison("release", 40, 30, 0, 0.75, 0.82, 0.07, 0.01, (0.0, 0.14))
    for comparisons, gain in (
        ([base], "0.31 -> 0.82 (+0.51) against base"),
        ([base, release], "0.75 -> 0.82 (+0.07) against release"),
    ):
        decision = decide(comparisons, min_holdout=20, kl=0.1, kl_budget=0.5)
        assert describe_gain("f" * 64, decision) == f"release {'f' * 12}: held-out reward {gain}"


@pytest.mark.vllm
@pytest.mark.slow
def test_uniform_rewards_teach_nothing_and_publish_nothing(tmp_path: Path) -> None:
    """A rubric that every answer passes has no gradient; the night says so instead of publishing noise."""
    workplace = make_workplace(tmp_path, rubric=ALWAYS_FINE)
    done = workplace.night()
    assert done.returncode == 0, done.stderr
    assert "nothing-to-learn" in done.stdout
    assert workplace.registry.releases(TENANT) == []
    again = workplace.night()
    assert "no new evidence" in again.stdout


@pytest.mark.vllm
@pytest.mark.slow
def test_a_night_killed_in_every_phase_ends_with_the_same_candidate(tmp_path: Path) -> None:
    """kill -9 costs time, never another adapter: every phase resumes from what was frozen; the registry stays whole."""
    calm = make_workplace(tmp_path / "calm")
    killed = Workplace(tmp_path / "killed")
    shutil.copytree(calm.folder, killed.folder)
    done = calm.night()
    assert done.returncode == 0, done.stderr
    assert "published" in done.stdout, done.stdout

    killed.night_killed_at({"phase": "freeze"})
    killed.night_killed_at({"phase": "episodes"}, "--resume")
    killed.night_killed_at({"phase": "step", "step": 1}, "--resume")
    killed.night_killed_at({"phase": "step", "step": 5}, "--resume")
    killed.night_killed_at({"phase": "gate"}, "--resume")
    assert killed.registry.pointer(TENANT).stable is None
    killed.night_killed_at({"phase": "publish"}, "--resume")
    done = killed.night("--resume")
    if "no unfinished night" not in done.stderr:  # the kill may come after the last byte was written
        assert done.returncode == 0, done.stderr

    release, same = calm.registry.pointer(TENANT).stable, killed.registry.pointer(TENANT).stable
    assert release is not None
    assert same is not None
    weights = [w.registry.release_folder(TENANT, d) / WEIGHTS for w, d in ((calm, release), (killed, same))]
    assert hashlib.sha256(weights[0].read_bytes()).digest() == hashlib.sha256(weights[1].read_bytes()).digest()
    assert (killed.registry.release_folder(TENANT, same) / REPORT).read_text().startswith("<!doctype html>")

    again = calm.night()
    assert again.returncode == 0, again.stderr
    assert "no new evidence" in again.stdout
    assert calm.registry.releases(TENANT) == [release]

    with SqliteStream(calm.folder / "stream.db", partitions=2) as stream:
        add_traffic(stream, range(100, 148), outcomes=True)
    second = calm.night()
    assert second.returncode == 0, second.stderr
    # The release already answers "loan": nothing can be better, and the night must judge against it, not only the base.
    assert "against release" in second.stdout or "nothing-to-learn" in second.stdout
    assert calm.registry.pointer(TENANT).stable == release
