"""The collector as a process: a listening socket, uvicorn, and an orderly end."""

from __future__ import annotations

import socket

import uvicorn

from nightschool.config import Config
from nightschool.errors import ConfigError
from nightschool.keys import KeyRing
from nightschool.stream import Stream, open_configured
from nightschool_collector.app import create_app

KEEP_ALIVE_S = 75  # longer than the pause between two batches of an exporter, so that it never meets a closing connection
DRAIN_S = 10


def serve(config: Config) -> None:
    """Receive until SIGTERM or SIGINT; what is being written then is finished and acknowledged first."""
    hashes = {name: tenant.key_sha256 for name, tenant in config.tenants.items() if tenant.key_sha256}
    if not hashes:
        raise ConfigError(
            "no tenant has a key, so the collector could accept nothing; 'nightschool key --tenant NAME' makes one,"
            " put its SHA-256 into [tenants.NAME] key_sha256"
        )
    with open_configured(config.stream) as stream:
        app = create_app(stream, KeyRing(hashes), config.collector.max_body_mib << 20)
        settings = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=DRAIN_S,
        )
        with _listen(config.collector.host, config.collector.port) as listener:
            address = f"http://{config.collector.host}:{listener.getsockname()[1]}"
            greeting = f"collecting on {address} into {config.stream.url} for tenants {', '.join(hashes)}"
            _Server(settings, stream, greeting).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        message = f"cannot listen on {host}:{port}: {error.strerror}; stop what listens there or change [collector] port"
        raise ConfigError(message) from error


class _Server(uvicorn.Server):
    """Says when it is ready, and closes the stream before the signal that ended it takes effect."""

    def __init__(self, settings: uvicorn.Config, stream: Stream, greeting: str) -> None:
        super().__init__(settings)
        self._stream, self._greeting = stream, greeting

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        print(self._greeting, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets=sockets)
        self._stream.close()
