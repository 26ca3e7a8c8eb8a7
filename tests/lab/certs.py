"""A certificate authority for the lab, its server certificates, and one nobody trusts."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True)
class Identity:
    """A certificate with its key, both in PEM files."""

    cert: Path
    key: Path

    def context(
        self,
        *,
        minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
        maximum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        ciphers: str | None = None,
        alpn: Sequence[str] = (),
        tickets: int = 2,
    ) -> ssl.SSLContext:
        """A server's context. ``tickets``: how many a TLS 1.3 handshake sends after itself."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert, self.key)
        context.minimum_version = minimum
        context.maximum_version = maximum
        context.num_tickets = tickets
        if ciphers:
            context.set_ciphers(ciphers)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context


def make_client(folder: Path) -> tuple[Path, Identity]:
    """Make a CA for clients and a client's certificate; the CA's PEM file and the identity."""
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_cert = _certificate(ca_key, "conmond lab clients", ca_key, "conmond lab clients", None)
    key = ec.generate_private_key(ec.SECP256R1())
    cert = _certificate(key, "client", ca_key, "conmond lab clients", ["client.lab.test"])
    ca_file = folder / "clients.pem"
    ca_file.write_bytes(ca_cert.public_bytes(serialization.Encoding.PEM))
    return ca_file, _write(folder, "client", cert, key)


def make_authority(folder: Path, names: Sequence[str]) -> tuple[Path, Identity, Identity]:
    """Make a CA, a server certificate for ``names`` (DNS names, addresses), a self-signed one.

    Returns:
        the CA's PEM file, the trusted identity, the untrusted identity for the same names.
    """
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_cert = _certificate(ca_key, "conmond lab CA", ca_key, "conmond lab CA", None)
    server_key = ec.generate_private_key(ec.SECP256R1())
    server = _certificate(server_key, "server", ca_key, "conmond lab CA", names)
    stranger_key = ec.generate_private_key(ec.SECP256R1())
    stranger = _certificate(stranger_key, "stranger", stranger_key, "stranger", names)
    ca_file = folder / "ca.pem"
    ca_file.write_bytes(ca_cert.public_bytes(serialization.Encoding.PEM))
    return (
        ca_file,
        _write(folder, "server", server, server_key),
        _write(folder, "stranger", stranger, stranger_key),
    )


def _certificate(
    key: ec.EllipticCurvePrivateKey,
    subject: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    issuer: str,
    names: Sequence[str] | None,  # None: a CA
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    issuer_id = x509.SubjectKeyIdentifier.from_public_key(issuer_key.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_id), False
        )
        .add_extension(x509.BasicConstraints(ca=names is None, path_length=None), True)
        .add_extension(_key_usage(ca=names is None), True)
    )
    if names is not None:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_general_name(name) for name in names]), False
        ).add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            False,
        )
    return builder.sign(issuer_key, hashes.SHA256())


# RFC 5280 section 4.2.1.3 wants it of a CA, and so do clients that are strict.
def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _write(
    folder: Path, name: str, cert: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> Identity:
    identity = Identity(folder / f"{name}.pem", folder / f"{name}.key")
    identity.cert.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    identity.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return identity
