"""The collector as a process, or several: listening sockets, uvicorn, gRPC, and an orderly end."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from nightschool.config.follow import ConfigFollower, KeyChanges
from nightschool.config.redactors import redactors
from nightschool.config.settings import CollectorConfig, Config, duration_ms
from nightschool.config.stream import open_configured
from nightschool.connections import ConnectionLimits, limited_http
from nightschool.errors import ConfigError, MissingExtraError, StreamError
from nightschool.keys import KeyRing
from nightschool.machine import read_machine
from nightschool.stream import Stream, retention_warnings
from nightschool_collector.app import app_of
from nightschool_collector.counters import Counters
from nightschool_collector.outcomes.browser_settings import BrowserAccess, BrowserSettings
from nightschool_collector.receiver import Receiver
from nightschool_collector.request.admission import Admission
from nightschool_collector.request.budgets import budgets_of
from nightschool_collector.store.writer import RecordWriter
from nightschool_collector.workers import Workers

if TYPE_CHECKING:
    from nightschool_collector.grpc_server import GrpcServer

KEEP_ALIVE_S = 75  # longer than an exporter's pause between two batches, so that it never meets a closing connection
_OPEN_FILES = 2 * ConnectionLimits().connections  # each connection is one; the stream and gRPC have the rest
# Python's own 5 ms let threads that count or split large requests keep the event loop waiting at every turn.
_SWITCH_S = 0.0001
DRAIN_S = 10  # the official exporters give a request up after 10 s


def serve(config: Config, path: Path) -> None:
    """Receive until SIGTERM or SIGINT; what is being written then is finished and acknowledged first.

    The keys that count are those that the file at `path`, where `config` came from, has at the time.
    """
    hashes = {name: tenant.key_sha256 for name, tenant in config.tenants.items()}
    if not any(hashes.values()):
        raise ConfigError(
            "no tenant has a key, so the collector could accept nothing; 'nightschool key --tenant NAME' makes one,"
            " put its SHA-256 into [tenants.NAME] key_sha256"
        )
    _allow_connections()
    sys.setswitchinterval(_SWITCH_S)
    settings = config.collector
    browser = BrowserAccess(BrowserSettings.of(config))
    counters = Counters(hashes, num_workers=settings.workers)
    with _listen(settings.host, settings.port, "port") as listener:
        if settings.grpc_port:
            # Listen and close, because gRPC itself does not say why it cannot listen.
            _listen(settings.host, settings.grpc_port, "grpc_port").close()
        where = f"http://{settings.host}:{listener.getsockname()[1]}"
        if settings.grpc_port:
            where += f" and grpc://{settings.host}:{settings.grpc_port}"
        greeting = (
            f"collecting on {where} into {config.stream.url} for tenants {', '.join(name for name in hashes if hashes[name])}"
        )

        def run(index: int, ready: Callable[[], None]) -> None:
            counters.use_row(index)
            ring = KeyRing(hashes)
            follower = _follow_keys(path, ring, hashes, browser, says=index == 0)
            try:
                _receive(config, ring, counters, browser, listener, ready)
            finally:
                follower.close()

        def ready() -> None:
            print(greeting, flush=True)

        if settings.workers == 1:
            run(0, ready)
        else:
            Workers(settings.workers, run).supervise(ready)


def _allow_connections() -> None:
    """Ask for as many open files as the limit on connections and the rest need; often a process begins with 1,024."""
    try:
        import resource
    except ImportError:  # not on Windows, which has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _follow_keys(
    path: Path, ring: KeyRing, hashes: Mapping[str, tuple[str, ...]], browser: BrowserAccess, *, says: bool
) -> ConfigFollower:
    """Keep `ring` and `browser` as the file at `path` is; of several processes only one `says` what has changed."""

    def say(line: str) -> None:
        if says:
            print(f"nightschool collect: {line}", file=sys.stderr, flush=True)

    keys = KeyChanges(ring, hashes, say=say)

    def apply(config: Config) -> None:
        of_browser = BrowserSettings.of(config, only=hashes)
        keys.apply(config)
        browser.use(of_browser)

    follower = ConfigFollower(path, apply, say=say)
    follower.look_on_hangup()
    follower.start()
    return follower


def _receive(
    config: Config,
    keys: KeyRing,
    counters: Counters,
    browser: BrowserAccess,
    listener: socket.socket,
    ready: Callable[[], None],
) -> None:
    """One process: open the stream, answer, drain, close."""
    settings = config.collector
    with open_configured(config.stream, outcome_window_ms=duration_ms(config.night.outcome_window)) as stream:
        _warn_of_retention(stream)
        admission = Admission(budgets_of(settings, read_machine()), gauge=counters.in_flight)
        receiver = Receiver(keys, counters, admission, settings.max_body_mib << 20)
        writer = RecordWriter(stream, counters, redactors=redactors(config))
        uvicorn_settings = uvicorn.Config(
            app_of(receiver, writer, operators=settings.metrics_key_sha256, browser=browser),
            http=limited_http(ConnectionLimits()),
            log_level="warning",
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=DRAIN_S,
        )
        _Server(uvicorn_settings, settings, receiver, writer, ready).run(sockets=[listener])


def _warn_of_retention(stream: Stream) -> None:
    """Warn before the first record is taken: one that expires before a night reads it is lost without an error."""
    try:
        warnings = retention_warnings(stream)
    except StreamError as error:
        warnings = [f"the retention of its topics could not be checked: {error}"]
    for warning in warnings:
        print(f"nightschool collect: warning: {warning}", file=sys.stderr, flush=True)


def _listen(host: str, port: int, setting: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        # The kernel keeps connections that wait to be accepted; uvicorn's own default is 2048 too.
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        message = f"cannot listen on {host}:{port}: {error.strerror}; stop what listens there or change [collector] {setting}"
        raise ConfigError(message) from error


class _Server(uvicorn.Server):
    """HTTP and gRPC in one event loop; what was begun is finished before the signal that ended it takes effect."""

    def __init__(
        self,
        settings: uvicorn.Config,
        collector: CollectorConfig,
        receiver: Receiver,
        writer: RecordWriter,
        ready: Callable[[], None],
    ) -> None:
        super().__init__(settings)
        self._collector, self._receiver, self._ready = collector, receiver, ready
        self._stream = writer.stream
        self._grpc = _grpc_server(receiver, writer) if collector.grpc_port else None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._grpc is not None:
            settings = self._collector
            await self._grpc.start(settings.host, settings.grpc_port, shared=settings.workers > 1)
        await super().startup(sockets=sockets)
        # What is there now stays: no collection of garbage goes through it again while requests wait.
        gc.collect()
        gc.freeze()
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._receiver.draining = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        of_grpc = self._grpc.stop(DRAIN_S) if self._grpc is not None else asyncio.sleep(0)
        await asyncio.gather(super().shutdown(sockets=sockets), of_grpc)
        self._receiver.close()
        # Here and not after `run`: uvicorn raises the signal again at the end of `run`, and it may end the process.
        self._stream.close()


def _grpc_server(receiver: Receiver, writer: RecordWriter) -> GrpcServer:
    try:
        from nightschool_collector.grpc_server import GrpcServer
    except ModuleNotFoundError as error:
        raise MissingExtraError("OTLP/gRPC", "collector", error.name or "grpcio") from error
    return GrpcServer(receiver, writer)
