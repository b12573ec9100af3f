"""TLS and SASL against a real broker that accepts nothing else."""

from __future__ import annotations

import datetime as dt
import gc
import ipaddress
import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from nightschool.config.reader import parse_config
from nightschool.config.stream import open_configured
from nightschool.errors import ConfigError, StreamUnavailable
from nightschool.stream import Record
from nightschool.stream.kafka import KafkaStream
from nightschool.stream.kafka_connection import PASSWORD_VARIABLE, KafkaConnection, KafkaSecurity

_REFUSED = pytest.mark.filterwarnings("ignore:unclosed <:ResourceWarning")
PASSWORD = "correct-horse"
_PROPERTIES = """\
listeners=SASL_SSL://127.0.0.1:{port},INSIDE://127.0.0.1:INSIDE_PORT,MTLS://127.0.0.1:MTLS_PORT,CONTROLLER://127.0.0.1:{controller}
advertised.listeners=SASL_SSL://127.0.0.1:{port},INSIDE://127.0.0.1:INSIDE_PORT,MTLS://127.0.0.1:MTLS_PORT
listener.security.protocol.map=CONTROLLER:PLAINTEXT,INSIDE:PLAINTEXT,SASL_SSL:SASL_SSL,MTLS:SSL
inter.broker.listener.name=INSIDE
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_night="PASSWORD";
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.mtls.ssl.client.auth=required
ssl.keystore.type=PEM
ssl.keystore.location={folder}/broker.pem
ssl.truststore.type=PEM
ssl.truststore.location={folder}/ca.pem
"""


class Authority:
    """A certificate authority of this test alone."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._key = folder, ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        built = self._builder(self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        usage = {name: name in ("key_cert_sign", "crl_sign", "digital_signature") for name in _USAGES}
        built = built.add_extension(x509.KeyUsage(**usage), critical=True)
        (folder / "ca.pem").write_bytes(built.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> tuple[Path, Path]:
        """Certificate and key of `name`, valid for 127.0.0.1; both also in NAME.pem as a broker wants them."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        built = self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key).add_extension(
            names, critical=False
        )
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = built.add_extension(issuer, critical=False).sign(self._key, hashes.SHA256())
        pem = serialization.Encoding.PEM
        plain = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        files = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        files[0].write_bytes(certificate.public_bytes(pem))
        files[1].write_bytes(plain)
        (self._folder / f"{name}.pem").write_bytes(plain + certificate.public_bytes(pem))
        return files

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        builder = x509.CertificateBuilder(self._name, subject, key.public_key(), x509.random_serial_number())
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        day = dt.timedelta(days=1)
        return builder.not_valid_before(now - day).not_valid_after(now + day)


_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


class SecureBroker:
    """Where the broker listens, and the files it was given."""

    def __init__(self, folder: Path, sasl: str, mtls: str, client: tuple[Path, Path]) -> None:
        self.ca, self.sasl, self.mtls, self.client = str(folder / "ca.pem"), sasl, mtls, client


@pytest.fixture(scope="module")
def broker(
    kafka_jars: Path, start_broker: Callable[..., AbstractContextManager[Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SecureBroker]:
    folder = tmp_path_factory.mktemp("secure-kafka")
    authority = Authority(folder)
    authority.issue("broker")
    client = authority.issue("client")
    inside, mtls = _free_ports(2)
    properties = _PROPERTIES.replace("INSIDE_PORT", str(inside)).replace("MTLS_PORT", str(mtls)).replace("PASSWORD", PASSWORD)
    scram = [f"--add-scram=SCRAM-SHA-{bits}=[name=night,password={PASSWORD}]" for bits in (256, 512)]
    with start_broker(kafka_jars, folder, properties=properties, format_with=scram) as running:
        yield SecureBroker(folder, running.bootstrap, f"127.0.0.1:{mtls}", client)


@pytest.fixture
def password_file(tmp_path: Path) -> str:
    path = tmp_path / "password"
    path.write_text(f"{PASSWORD}\n")
    return str(path)


def _free_ports(count: int) -> list[int]:
    import socket
    from contextlib import ExitStack

    with ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(probe.getsockname()[1]) for probe in probes]


def _round_trip(bootstrap: str, security: KafkaSecurity, *, fast: bool) -> list[bytes]:
    topic = f"ns.test-{uuid.uuid4().hex}"
    with KafkaStream([bootstrap], partitions=1, security=security, fast=fast) as stream:
        stream.append(topic, [Record(b"k", b"secret traffic")])
        return [record.value for record in stream.read(topic, 0, 0, 1)]


@pytest.mark.kafka
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_sasl_over_tls(broker: SecureBroker, password_file: str, mechanism: str, fast: bool) -> None:
    """With the right authority and password every client writes and reads, by each mechanism."""
    security = KafkaSecurity(protocol="SASL_SSL", ca=broker.ca, mechanism=mechanism, user="night", password_file=password_file)
    assert _round_trip(broker.sasl, security, fast=fast) == [b"secret traffic"]


@pytest.mark.kafka
@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
def test_a_client_certificate(broker: SecureBroker, fast: bool) -> None:
    """Where the broker asks for a certificate, ours and its key let us in."""
    certificate, key = map(str, broker.client)
    security = KafkaSecurity(protocol="SSL", ca=broker.ca, certificate=certificate, key=key)
    assert _round_trip(broker.mtls, security, fast=fast) == [b"secret traffic"]


@_REFUSED
@pytest.mark.kafka
def test_settings_reach_the_broker_and_the_password_reaches_no_text(
    broker: SecureBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """[stream] alone opens the secured cluster, with the password from the environment, which nothing shows."""
    caplog.set_level(logging.CRITICAL, logger="kafka")  # captured log records would hold the connections they are about
    monkeypatch.setenv(PASSWORD_VARIABLE, PASSWORD)
    text = (
        f'[stream]\nurl = "kafka://{broker.sasl}"\nsecurity_protocol = "SASL_SSL"\nssl_ca = "{broker.ca}"\n'
        'sasl_mechanism = "SCRAM-SHA-512"\nsasl_user = "night"\n'
    )
    config = parse_config(text, base=tmp_path)
    assert PASSWORD not in repr(config) + repr(config.stream.security())
    with open_configured(config.stream) as stream:
        assert stream.end_offsets("ns.unknown") == {}
    monkeypatch.setenv(PASSWORD_VARIABLE, "wrong-horse")
    with (
        open_configured(config.stream) as stream,
        pytest.raises(StreamUnavailable, match=r"over SASL_SSL: .* check user, password") as caught,
    ):
        stream.end_offsets("ns.unknown")
    assert "wrong-horse" not in str(caught.value)
    gc.collect()  # kafka-python leaves sockets of refused connections to the garbage collector; it must warn here


@_REFUSED
@pytest.mark.kafka
def test_a_broker_of_another_authority_is_not_trusted(
    broker: SecureBroker, password_file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A certificate that the given authority did not sign ends the connection before the password is sent."""
    caplog.set_level(logging.CRITICAL, logger="kafka")
    Authority(tmp_path)
    other = KafkaSecurity(
        protocol="SASL_SSL", ca=str(tmp_path / "ca.pem"), mechanism="PLAIN", user="night", password_file=password_file
    )
    with KafkaStream([broker.sasl], partitions=1, security=other) as stream, pytest.raises(StreamUnavailable):
        stream.end_offsets("ns.unknown")
    gc.collect()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('ssl_ca = "ca.pem"', "TLS files are set, but security_protocol is PLAINTEXT; allowed with them are SSL and SASL_SSL"),
        ('security_protocol = "SSL"\nssl_key = "k.pem"', "set both ssl_certificate and ssl_key"),
        ('security_protocol = "SASL_SSL"', "needs sasl_mechanism and sasl_user"),
        ('security_protocol = "SSL"\nsasl_user = "night"', "SASL settings are set, but security_protocol is SSL"),
        ('security_protocol = "TLS"', "allowed are 'PLAINTEXT', 'SSL', 'SASL_PLAINTEXT', 'SASL_SSL'"),
        ('sasl_mechanism = "GSSAPI"', "allowed are '', 'PLAIN', 'SCRAM-SHA-256', 'SCRAM-SHA-512'"),
    ],
)
def test_settings_that_can_never_connect_are_refused(tmp_path: Path, lines: str, said: str) -> None:
    """What contradicts itself is an error of the file, with a line, before anything connects."""
    with pytest.raises(ConfigError, match=rf"nightschool\.toml:\d+: .*{said}"):
        parse_config(f"[stream]\n{lines}\n", base=tmp_path)


def test_a_missing_password_says_where_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither file nor variable: the error names the place that was looked at."""
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    sasl = {"protocol": "SASL_SSL", "mechanism": "PLAIN", "user": "night"}
    with pytest.raises(
        ConfigError, match=f"user 'night' is missing: environment variable {PASSWORD_VARIABLE} is empty or not set"
    ):
        KafkaSecurity(**sasl).for_kafka_python()
    with pytest.raises(ConfigError, match=r"nowhere, named in \[stream\], does not exist or cannot be read"):
        KafkaSecurity(**sasl, password_file=str(tmp_path / "nowhere")).for_librdkafka()


def test_an_unavailable_cluster_says_where_to_look() -> None:
    """The error names the brokers and the reason; over TLS or SASL it also says what is most often wrong there."""
    plain = KafkaConnection.to(["b1:9092", "b2:9092"])
    assert str(plain.unavailable("timed out")) == "Kafka at b1:9092,b2:9092 cannot be used now, try again: timed out"
    secure = KafkaConnection.to(["b1:9092"], KafkaSecurity(protocol="SSL"))
    assert str(secure.unavailable("timed out")).endswith(
        "timed out (over SSL: if the brokers are up, check user, password and certificates)"
    )
