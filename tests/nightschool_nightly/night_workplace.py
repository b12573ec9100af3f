"""A folder in which a night runs: its configuration, a small day of traffic, and the commands to start it."""

from __future__ import annotations

import hashlib
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from rich.console import Console

from nightschool import semconv
from nightschool.config.reader import load_config
from nightschool.outcomes.record import Outcome, to_logs_request
from nightschool.registry.folder import Registry
from nightschool.stream import Record
from nightschool.stream.sqlite import SqliteStream
from nightschool_nightly.night import NightResult, run_night
from nightschool_nightly.progress import Progress
from tests.warm_python import WarmPython

TENANT = "bank"
NIGHT_TIMEOUT_S = 1200  # only a night that hangs takes as long, also on an old machine with other work beside it
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
steps = 16
prompts_per_step = 8
group_size = 4
learning_rate = 2e-3
warmup_steps = 0
holdout_share = 0.4
min_holdout = 5
min_train = 5
kl_budget = 0.5  # a few steps at a high rate move far
confidence = 0.99  # the default lets one in twenty nights of pure noise through, as it says
[tenants.bank]
rubrics = ["rubric.toml"]
"""
RIGHT_QUEUE = 'task = "triage"\n[[items]]\nname = "right"\nkind = "outcome"\noutcome = "queue"\nignore_case = true\n'
QUEUES = {
    "card is lost": "card",
    "card was stolen": "card",
    "card does not work": "card",
    "rate of a mortgage": "loan",
    "borrow some money": "loan",
    "pay back my loan": "loan",
}
MESSAGES = tuple(QUEUES)
Queue = Callable[[int], str]


def right_queue(number: int) -> str:
    """Where the agent files message `number`: one half of the messages is about cards, the other about loans."""
    return QUEUES[MESSAGES[number % len(MESSAGES)]]


def renamed_queue(number: int) -> str:
    """The same, after the bank has renamed its queues."""
    return {"card": "lost", "loan": "money"}[right_queue(number)]


def coin(number: int) -> str:
    """A queue that has nothing to do with the message."""
    return ("lost", "money")[hashlib.sha256(f"coin {number}".encode()).digest()[0] % 2]


@dataclass(frozen=True)
class Workplace:
    """A folder with a configuration, a stream and a registry."""

    folder: Path

    def command(self, *arguments: str) -> list[str]:
        config = str(self.folder / "nightschool.toml")
        return [sys.executable, "-m", "nightschool", "night", "--config", config, "--tenant", TENANT, *arguments]

    def night(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=NIGHT_TIMEOUT_S, check=False)

    def quick_night(self, python: WarmPython, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A night that ends before anything is sampled."""
        config = str(self.folder / "nightschool.toml")
        return python.run("nightschool_nightly", "--config", config, "--tenant", TENANT, *arguments)

    def night_here(self, *, resume: bool = False) -> NightResult:
        """A night in this process, for those that end before a model is loaded."""
        config = load_config(self.folder / "nightschool.toml")
        progress = Progress(Console(file=io.StringIO()))
        return run_night(config, TENANT, dry_run=False, resume=resume, progress=progress, now_ms=lambda: 1_760_000_000_000)

    def night_killed_at(self, event: dict[str, object], *arguments: str) -> None:
        """Start a night and kill -9 it as soon as its event log holds `event`."""
        seen = len(self.events())
        process = subprocess.Popen(self.command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            deadline = time.monotonic() + NIGHT_TIMEOUT_S
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


def make_workplace(folder: Path, *, rubric: str = RIGHT_QUEUE, messages: int = 48, outcomes: bool = True) -> Workplace:
    """A small day: one message each of `messages` users, and where the agent filed it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "nightschool.toml").write_text(SETTINGS)
    (folder / "rubric.toml").write_text(rubric)
    with SqliteStream(folder / "stream.db", partitions=2) as stream:
        add_traffic(stream, range(messages), queue=right_queue if outcomes else None)
    workplace = Workplace(folder)
    workplace.registry.create()
    return workplace


def add_traffic(stream: SqliteStream, numbers: range, *, queue: Queue | None) -> None:
    for number in numbers:
        trace = hashlib.md5(str(number).encode(), usedforsecurity=False).digest()
        stream.append(semconv.TOPIC_SPANS, [Record(trace.hex().encode(), span(number, trace), HEADERS)])
        if queue is not None:
            outcome = Outcome({"response_id": f"r-{number}"}, "queue", final_text=queue(number))
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
    # Production cuts here too, so an answer that goes on is scored as it is, and is wrong.
    added.attributes.append(KeyValue(key=semconv.GEN_AI_REQUEST_MAX_TOKENS, value=AnyValue(int_value=4)))
    return request.SerializeToString()
