"""The lab's certificates, as the strictest of its clients judges them: Python 3.13 and later."""

from __future__ import annotations

import ssl

import pytest

from tests.lab.certs import make_authority, make_client


def strict(context: ssl.SSLContext) -> ssl.SSLContext:
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def shake_hands(client_context: ssl.SSLContext, server_context: ssl.SSLContext, name: str) -> None:
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=name)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    waiting = [client, server]
    for _ in range(10):
        for side in list(waiting):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(side)
    assert not waiting


@pytest.mark.parametrize("name", ["near.lab.test", "10.1.2.3", "fd00::1"])
def test_a_servers_certificate_is_accepted(tmp_path, name):
    ca, server, stranger = make_authority(tmp_path, ["near.lab.test", "10.1.2.3", "fd00::1"])
    trusting = strict(ssl.create_default_context(cafile=ca))
    shake_hands(trusting, server.context(), name)
    with pytest.raises(ssl.SSLCertVerificationError, match="self-signed"):
        shake_hands(trusting, stranger.context(), name)


def test_a_clients_certificate_is_accepted(tmp_path):
    ca, server, _ = make_authority(tmp_path, ["near.lab.test"])
    clients_ca, identity = make_client(tmp_path)
    accepting = strict(server.context())
    accepting.load_verify_locations(clients_ca)
    accepting.verify_mode = ssl.CERT_REQUIRED
    client = strict(ssl.create_default_context(cafile=ca))
    client.load_cert_chain(identity.cert, identity.key)
    shake_hands(client, accepting, "near.lab.test")
