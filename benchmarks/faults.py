"""Collector and broker are killed with SIGKILL again and again under load: is anything lost that was acknowledged?

    make bench NAME=faults

A real Apache Kafka and the real collector run as processes. Spans go through the official Python OTLP exporter, which
gets each batch again until it reports success. Outcomes go through nightschool's own SDK, which retries by itself. Each
time another share of the spans is acknowledged, one of the two processes, or both, is killed and started again on the
same data. Then everything is read back as a night reads it: through the episode store, which drops copies. Every
acknowledged span must be in one episode, and every acknowledged outcome must be on its episode once. If not, the exit
status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the tests' broker is used here too

TENANT, KEY = "acme", "ns-acme-faults"
BATCH = 512  # the exporter's own default
SENDERS = 4
VICTIMS = ("collector", "broker", "collector", "both")
START_TIMEOUT_S = 60.0
GIVE_UP_S = 600.0
READ_AT_ONCE_MIB = 512


# --- the processes that are killed --------------------------------------------------------------------------------------
class Collector:
    """The real collector on a fixed port, started again where it was killed."""

    def __init__(self, folder: Path, stream_url: str) -> None:
        from examples.helpdesk.servers import free_ports
        from nightschool.keys import hash_key

        port = free_ports(1)[0]
        self.url, self._log, self._config = f"http://127.0.0.1:{port}", folder / "collector.log", folder / "nightschool.toml"
        self._config.write_text(
            f'[stream]\nurl = "{stream_url}"\n[collector]\nport = {port}\ngrpc_port = 0\n'
            f'[tenants.{TENANT}]\nkey_sha256 = ["{hash_key(KEY)}"]\n',
            encoding="utf-8",
        )
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "nightschool_collector", "--config", str(self._config)]
        with self._log.open("a") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        if not said.startswith("collecting on"):
            raise RuntimeError(f"the collector did not start: {said}{self._log.read_text()[-2000:]}")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


# --- load ---------------------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class Load:
    """What is sent, and what of it was acknowledged. Ids are numbers, so that two byte arrays hold all of them."""

    num_spans: int
    num_outcomes: int
    spans_acked: bytearray = field(init=False)
    outcomes_acked: int = 0
    exporter_gave_up: int = 0
    """How often the exporter reported failure; it then got the same batch again."""
    sdk_retries: int = 0

    def __post_init__(self) -> None:
        self.spans_acked = bytearray(self.num_spans)

    def traces_with_outcome(self) -> Iterator[int]:
        """Numbers of the spans that have an outcome, spread evenly over all."""
        return (number * self.num_spans // self.num_outcomes for number in range(self.num_outcomes))


def trace_id(number: int) -> int:
    """The trace id of span `number`: ids are spread over the whole range, and the number can be read from each."""
    return (number * 0x9E3779B97F4A7C15 % (1 << 64)) << 64 | number + 1


def span_number(trace: str) -> int:
    return int(trace[16:], 16) - 1


def send_spans(load: Load, url: str, sender: int, failures: list[BaseException]) -> None:
    """Send the batches of one sender; the official exporter gets each again until it reports success."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import SpanExportResult

    exporter = OTLPSpanExporter(f"{url}/v1/traces", headers={"Authorization": f"Bearer {KEY}"})
    resource = Resource({"service.name": "faults"})
    try:
        for first in range(sender * BATCH, load.num_spans, SENDERS * BATCH):
            numbers = range(first, min(first + BATCH, load.num_spans))
            batch, deadline = [span(number, resource) for number in numbers], time.monotonic() + GIVE_UP_S
            while exporter.export(batch) is not SpanExportResult.SUCCESS:
                load.exporter_gave_up += 1
                if time.monotonic() > deadline:
                    raise RuntimeError(f"a batch was not taken in {GIVE_UP_S:.0f} s")
            load.spans_acked[first : first + len(numbers)] = b"\1" * len(numbers)
    except BaseException as error:
        failures.append(error)
    finally:
        exporter.shutdown()  # type: ignore[no-untyped-call]


def span(number: int, resource: Any) -> Any:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

    question, answer = (
        json.dumps([{"role": role, "parts": [{"type": "text", "content": f"{role} {number} " + "lorem ipsum " * 20}]}])
        for role in ("user", "assistant")
    )
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.response.id": f"r{number}",
        "gen_ai.input.messages": question,
        "gen_ai.output.messages": answer,
    }
    context = SpanContext(trace_id(number), number + 1, is_remote=False, trace_flags=TraceFlags(1))
    return ReadableSpan(
        "chat m",
        context,
        None,
        resource,
        attributes,
        kind=SpanKind.CLIENT,
        start_time=10**18 + number,
        end_time=10**18 + number + 1,
    )


def send_outcomes(load: Load, url: str, failures: list[BaseException]) -> None:
    """Send outcomes through the SDK, in step with the spans; it keeps what is not acknowledged and tries again."""
    import nightschool

    try:
        client = nightschool.configure(url, TENANT, api_key=KEY)
        deadline = time.monotonic() + GIVE_UP_S
        for number, about in enumerate(load.traces_with_outcome()):
            while not load.spans_acked[max(0, about - SENDERS * BATCH)] and time.monotonic() < deadline and not failures:
                time.sleep(0.05)
            client.outcome("thumb", value=1, trace_id=f"{trace_id(about):032x}", event_id=f"faults-{number}", rater="mia")
        if not client.flush(GIVE_UP_S):
            raise RuntimeError(f"outcomes were not taken in {GIVE_UP_S:.0f} s: {client.stats()}")
        stats = client.stats()
        load.outcomes_acked, load.sdk_retries = stats.outcomes.sent, stats.retries
        client.shutdown()
    except BaseException as error:
        failures.append(error)


# --- faults -------------------------------------------------------------------------------------------------------------
def kill_under_load(load: Load, collector: Collector, broker: Any, kills: int, failures: list[BaseException]) -> list[str]:
    """Kill each time another share of the spans is acknowledged, and start again; returns what was killed."""
    chance = random.Random(7)
    killed: list[str] = []
    for number in range(kills):
        due = load.num_spans * (number + 1) // (kills + 1)
        while load.spans_acked.count(1) < due:
            if failures:
                return killed
            time.sleep(0.02)
        victim = VICTIMS[number % len(VICTIMS)]
        if victim in ("collector", "both"):
            collector.kill()
        if victim in ("broker", "both"):
            broker.kill()
        time.sleep(chance.uniform(0.2, 2.0))
        if victim in ("broker", "both"):
            broker.start()
        if victim in ("collector", "both"):
            collector.start()
        killed += ["collector", "broker"] if victim == "both" else [victim]
        print(f"{due:>9} spans acknowledged: killed {victim}, started again", flush=True)
    return killed


# --- reading back -------------------------------------------------------------------------------------------------------
def read_back(stream_url: str, load: Load, folder: Path) -> dict[str, Any]:
    """Read everything as a night does, and compare it with what was acknowledged."""
    from nightschool.stream import open_stream
    from nightschool_nightly.episodes.store import EpisodeStore
    from nightschool_nightly.freeze.freeze import freeze_whole_stream

    spans, outcomes, foreign = bytearray(load.num_spans), bytearray(load.num_spans), 0
    with open_stream(stream_url) as stream, contextlib.closing(EpisodeStore(folder, memory_mib=READ_AT_ONCE_MIB)) as store:
        manifest = freeze_whole_stream(stream, tenant=TENANT, now_ms=int(time.time() * 1000))
        store.build(stream, manifest)
        for built in store.episodes(TENANT):
            number = span_number(built.episode.trace_id)
            if not 0 <= number < load.num_spans or f"{trace_id(number):032x}" != built.episode.trace_id:
                foreign += 1
                continue
            spans[number] = min(255, spans[number] + len(built.episode.calls))
            outcomes[number] = min(255, sum(len(one.revisions) for one in built.episode.outcomes))
        dropped = dict(store.counts.dropped)
    return {**held_against(load, spans, outcomes), "foreign": foreign, "dropped_on_read": dropped}


def held_against(load: Load, spans: bytearray, outcomes: bytearray) -> dict[str, int]:
    """How much was read, how much is missing though it was acknowledged, and how much is there more than once."""
    outcomes_read = sum(outcomes[about] == 1 for about in load.traces_with_outcome())
    lost = sum(bool(acked and not read) for acked, read in zip(load.spans_acked, spans, strict=True))
    # The SDK says how many outcomes were acknowledged, not which, so only their number can be compared.
    lost += max(0, load.outcomes_acked - sum(outcomes[about] > 0 for about in load.traces_with_outcome()))
    twice = sum(read > 1 for read in spans) + sum(read > 1 for read in outcomes)
    return {"read_back": sum(read == 1 for read in spans) + outcomes_read, "acked_lost": lost, "read_twice": twice}


# --- the run ------------------------------------------------------------------------------------------------------------
def run(load: Load, kills: int, folder: Path) -> dict[str, Any]:
    from tests.conftest import KafkaBroker, _kafka_jars

    (folder / "kafka").mkdir()
    broker = KafkaBroker(_kafka_jars(), folder / "kafka")
    failures: list[BaseException] = []
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        stack.callback(broker.kill)
        broker.start()
        collector = Collector(folder, f"kafka://{broker.bootstrap}")
        stack.callback(collector.kill)
        collector.start()
        senders = [threading.Thread(target=send_spans, args=(load, collector.url, n, failures)) for n in range(SENDERS)]
        senders.append(threading.Thread(target=send_outcomes, args=(load, collector.url, failures)))
        for sender in senders:
            sender.start()
        try:
            killed = kill_under_load(load, collector, broker, kills, failures)
        except BaseException as error:
            failures.append(error)
            raise
        finally:
            for sender in senders:
                sender.join()
        if failures:
            raise failures[0]
        sent_s = time.monotonic() - started
        print(f"all sent after {sent_s:.0f} s; reading back", flush=True)
        found = read_back(f"kafka://{broker.bootstrap}", load, folder / "night")
    result = {
        "sent": load.num_spans + load.num_outcomes,
        "acked": load.spans_acked.count(1) + load.outcomes_acked,
        "kills": len(killed),
        "read_back": found.pop("read_back"),
        "acked_lost": found.pop("acked_lost"),
    }
    details = {**found, "kills_by_victim": dict(Counter(killed)), "exporter_gave_up": load.exporter_gave_up}
    return result | {"details": {**details, "sdk_retries": load.sdk_retries, "sent_s": round(sent_s, 1)}}


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown CPU")
    return f"{name}, {os.cpu_count()} cores"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--spans", type=int, default=200_000)
    parser.add_argument("--outcomes", type=int, default=20_000, help="each about another span")
    parser.add_argument("--kills", type=int, default=8, help="times that the collector, the broker or both are killed")
    arguments = parser.parse_args()
    if not 0 < arguments.outcomes <= arguments.spans:
        parser.error(f"--outcomes is {arguments.outcomes}; allowed is 1 to --spans, {arguments.spans}")
    for name in ("opentelemetry", "kafka", "nightschool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they log every failure, and this run causes failures
    with tempfile.TemporaryDirectory(prefix="nightschool-faults-") as folder:
        result = run(Load(arguments.spans, arguments.outcomes), arguments.kills, Path(folder))
    details = result.pop("details")
    written = {**result, **details, "hardware": cpu_name()}
    if arguments.spans == parser.get_default("spans"):  # a small run does not overwrite the committed figures
        (ROOT / "benchmarks/faults.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(details))
    print(json.dumps(result))
    return int(bool(result["acked_lost"] or details["read_twice"] or result["acked"] != result["sent"]))


if __name__ == "__main__":
    sys.exit(main())
