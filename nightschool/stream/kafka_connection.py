"""How to reach a Kafka cluster: brokers, TLS and SASL, described once and translated for both clients.

Neither client is imported here. The password is read from a file or from the environment when a client connects. It is
in no setting, message or repr.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nightschool.errors import ConfigError, RecordError, StreamUnavailable

PASSWORD_VARIABLE = "NIGHTSCHOOL_KAFKA_PASSWORD"
PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS = ("", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaSecurity:
    """How clients prove who they are, and whom they trust. `ConfigError` at once for what can never connect."""

    protocol: str = "PLAINTEXT"
    """One of `PROTOCOLS`."""
    ca: str = ""
    """PEM file of the authorities to trust; empty for those of the system."""
    certificate: str = ""
    """PEM file of the client's own certificate, with its chain; empty for none."""
    key: str = ""
    """PEM file of the certificate's unencrypted private key."""
    mechanism: str = ""
    """One of `MECHANISMS`; empty without SASL."""
    user: str = ""
    password_file: str = ""
    """File that holds the password; without one the password is in the environment variable `PASSWORD_VARIABLE`."""

    def __post_init__(self) -> None:
        tls, sasl = self.protocol.endswith("SSL"), self.protocol.startswith("SASL_")
        if not tls and (self.ca or self.certificate or self.key):
            raise ConfigError(
                f"TLS files are set, but security_protocol is {self.protocol}; allowed with them are SSL and SASL_SSL"
            )
        if bool(self.certificate) != bool(self.key):
            raise ConfigError(
                "a client certificate needs its key and a key its certificate; set both ssl_certificate and ssl_key"
            )
        if sasl and not (self.mechanism and self.user):
            raise ConfigError(f"security_protocol {self.protocol} needs sasl_mechanism and sasl_user")
        if not sasl and (self.mechanism or self.user or self.password_file):
            raise ConfigError(
                f"SASL settings are set, but security_protocol is {self.protocol}; allowed with them are SASL_SSL and SASL_PLAINTEXT"
            )

    def for_kafka_python(self) -> dict[str, Any]:
        """As keyword arguments of kafka-python's clients."""
        found: dict[str, Any] = {"security_protocol": self.protocol}
        for name, path in (("ssl_cafile", self.ca), ("ssl_certfile", self.certificate), ("ssl_keyfile", self.key)):
            if path:
                found[name] = _readable(path)
        if self.mechanism:
            found |= {"sasl_mechanism": self.mechanism, "sasl_plain_username": self.user, "sasl_plain_password": self._password()}
        return found

    def for_librdkafka(self) -> dict[str, Any]:
        """As properties of librdkafka."""
        names = {
            "ssl_cafile": "ssl.ca.location",
            "ssl_certfile": "ssl.certificate.location",
            "ssl_keyfile": "ssl.key.location",
            "security_protocol": "security.protocol",
            "sasl_mechanism": "sasl.mechanism",
            "sasl_plain_username": "sasl.username",
            "sasl_plain_password": "sasl.password",
        }
        return {names[name]: value for name, value in self.for_kafka_python().items()}

    def _password(self) -> str:
        if self.password_file:
            password = Path(_readable(self.password_file)).read_text(encoding="utf-8").rstrip("\r\n")
        else:
            password = os.environ.get(PASSWORD_VARIABLE, "")
        if not password:
            where = f"file {self.password_file}" if self.password_file else f"environment variable {PASSWORD_VARIABLE}"
            raise ConfigError(f"the password of Kafka user {self.user!r} is missing: {where} is empty or not set")
        return password


@dataclass(frozen=True, slots=True)
class KafkaConnection:
    """A cluster, how to log in to it, and the errors that name it."""

    bootstrap: tuple[str, ...]
    security: KafkaSecurity

    @classmethod
    def to(cls, bootstrap: Sequence[str], security: KafkaSecurity | None = None) -> KafkaConnection:
        """From the HOST:PORT parts of a stream URL; `ConfigError` when they name no broker."""
        servers = tuple(server for server in (server.strip() for server in bootstrap) if server)
        if not servers or not all(re.fullmatch(r".+:\d{1,5}", server) for server in servers):
            raise ConfigError(f"kafka://{','.join(bootstrap)} names no broker; write kafka://HOST:PORT[,HOST:PORT...]")
        return cls(servers, security or KafkaSecurity())

    def __str__(self) -> str:
        return ",".join(self.bootstrap)

    def unavailable(self, reason: str) -> StreamUnavailable:
        """The error that the cluster cannot be used now, for the `reason` that a client gave."""
        protocol = self.security.protocol
        hint = f" (over {protocol}: if the brokers are up, check user, password and certificates)"
        return StreamUnavailable(
            f"Kafka at {self} cannot be used now, try again: {reason}{'' if protocol == 'PLAINTEXT' else hint}"
        )

    def too_large(self, reason: str) -> RecordError:
        """The error that Kafka refused a record for its size, for the `reason` that a client gave."""
        return RecordError(f"Kafka refuses a record as too large, split it before appending: {reason}")


def _readable(path: str) -> str:
    if not os.access(path, os.R_OK):
        raise ConfigError(f"file {path}, named in [stream], does not exist or cannot be read")
    return path
