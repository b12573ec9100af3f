"""Fixtures that several parts share: a real Apache Kafka broker."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

POM = Path(__file__).parents[1] / "deploy" / "kafka" / "pom.xml"
START_TIMEOUT_S = 180.0

_SERVER_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
"""


def pytest_configure(config: pytest.Config) -> None:
    # kafka-python 3.0 reads its schemas with functions that Python 3.11 and 3.12 call deprecated and 3.13 does not.
    config.addinivalue_line("filterwarnings", r"ignore:(read|open)_text is deprecated:DeprecationWarning")
    # torch, imported by vLLM, decorates its own classes with what it has deprecated.
    config.addinivalue_line("filterwarnings", r"ignore:`torch.jit.script.*` is deprecated:DeprecationWarning")


class KafkaBroker:
    """One KRaft node that a test may kill and start again on the same data and port."""

    def __init__(self, jars: Path, folder: Path, *, properties: str = "", format_with: Sequence[str] = ()) -> None:
        """`properties` are lines that add to ours or replace them, with {port}, {controller} and {folder} filled in."""
        self.port, self.folder = free_port(), folder
        self._process: subprocess.Popen[bytes] | None = None
        self._java = ["java", "-Xmx512m", "-cp", f"{jars}/*"]
        self._properties = folder / "server.properties"
        places = {"port": self.port, "controller": free_port(), "data": folder / "data", "folder": folder}
        self._properties.write_text((_SERVER_PROPERTIES + properties).format(**places))
        self.tool("kafka.tools.StorageTool", "format", "-t", "MkU3OEVBNTcwNTJENDM2Qg", "-c", str(self._properties), *format_with)

    def tool(self, *command: str) -> str:
        """Run one of Kafka's own tools by its class, as the scripts in its bin/ do; what it printed."""
        return subprocess.run([*self._java, *command], check=True, capture_output=True, text=True).stdout

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self.launch()
        self.await_listening()

    def launch(self) -> None:
        """Start the process only; a broker of several listens once most of them run."""
        with (self.folder / "broker.log").open("ab") as log:
            command = [*self._java, "kafka.Kafka", str(self._properties)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)

    def await_listening(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _accepts(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Kafka did not start:\n{(self.folder / 'broker.log').read_text()[-4000:]}")
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL, as a machine that loses power."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture(scope="session")
def kafka_broker(kafka_jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """A running Apache Kafka."""
    with running_broker(kafka_jars, tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture(scope="session")
def start_broker() -> Callable[..., AbstractContextManager[KafkaBroker]]:
    """Starts a broker of a test's own: `start_broker(jars, folder, properties=...)`."""
    return running_broker


@pytest.fixture(scope="session")
def kafka_cluster(kafka_jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[KafkaBroker]]:
    """Three running brokers of one cluster, each of which may be killed and started again."""
    controllers = [free_port() for _ in range(3)]
    voters = ",".join(f"{node}@127.0.0.1:{port}" for node, port in enumerate(controllers, start=1))
    brokers = []
    for node, controller in enumerate(controllers, start=1):
        own = f"node.id={node}\ncontroller.quorum.voters={voters}\nlisteners=PLAINTEXT://127.0.0.1:{{port}},CONTROLLER://127.0.0.1:{controller}\n"
        brokers.append(KafkaBroker(kafka_jars, tmp_path_factory.mktemp(f"kafka-{node}"), properties=own))
    try:
        for broker in brokers:
            broker.launch()
        for broker in brokers:
            broker.await_listening()
        yield brokers
    finally:
        for broker in brokers:
            broker.kill()


@contextmanager
def running_broker(jars: Path, folder: Path, **settings: Any) -> Iterator[KafkaBroker]:
    broker = KafkaBroker(jars, folder, **settings)
    try:
        broker.start()
        yield broker
    finally:
        broker.kill()


@pytest.fixture(scope="session")
def kafka_jars() -> Path:
    """The jars of Apache Kafka; skipped with the reason where Java or Maven is missing, failed in CI."""
    if missing := [program for program in ("java", "mvn") if shutil.which(program) is None]:
        reason = f"a real Kafka needs {' and '.join(missing)} on the PATH"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason}, and CI must run these tests")
        pytest.skip(reason)
    return _kafka_jars()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _kafka_jars() -> Path:
    """The jars that the POM names, fetched once into the user's cache and renamed into place when complete."""
    version = re.search(r"<kafka.version>(.+)</kafka.version>", POM.read_text())
    assert version is not None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nightschool"
    jars = cache / f"kafka-{version[1]}"
    if not jars.is_dir():
        partial = cache / f"kafka-{version[1]}.{os.getpid()}"
        command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={partial}"]
        subprocess.run(command, check=True, cwd=POM.parent)
        partial.replace(jars)
    return jars


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def unused_port() -> int:
    """A port of 127.0.0.1 on which nothing listens."""
    return free_port()
