"""Thirty-three programs of fifteen languages and TLS stacks, named nowhere in conmond: one HTTPS
request each, and three ways to fail."""

import pytest

from tests.clients.expectations import Between, Within
from tests.lab import world
from tests.lab.fleet import FLEET, Tools
from tests.lab.servers import Behaviour

pytestmark = pytest.mark.client("ip", "openssl")

DNS_S, HELLO_S, RESPONSE_S = 0.040, 0.070, 0.110
OWN_WORK_US = 400_000  # an interpreter's own cryptography, within its handshake


@pytest.fixture(scope="module")
def tools(lab, tmp_path_factory):
    return Tools(str(lab.ca_file), tmp_path_factory.mktemp("fleet"))


@pytest.fixture(scope="module")
def sites(lab):
    def site(context):
        return lab.serve(
            Behaviour(tls=context, hello_delay_s=HELLO_S, response_delay_s=RESPONSE_S), world.FAR4
        )

    return {
        "1.2": site(lab.tls("1.2")),
        "1.3": site(lab.tls("1.3")),
        "untrusted": site(lab.untrusted.context()),
    }


@pytest.fixture
def get(lab, watch, tools):
    def run(client, host, port):
        """The records of one request."""
        return watch.run(
            client.argv(f"https://{host}:{port}/", tools),
            stdin=client.stdin,
            env={
                "HOME": str(tools.folder),
                "SSL_CERT_FILE": tools.ca,
                "NO_COLOR": "1",
                "DENO_NO_UPDATE_CHECK": "1",
                "UV_HTTP_RETRIES": "0",
            },
            wanted=lambda record: record["host"] == host or record["rport"] == port,
            timeout_s=40,
        ).records

    return run


def each(clients=FLEET):
    return pytest.mark.parametrize("client", clients, ids=lambda client: client.name)


@each()
def test_one_request(lab, sites, get, client):
    host = lab.name(f"fleet-{client.name.replace('_', '-')}", world.FAR4, delay_s=DNS_S)
    site = sites[client.tls]
    (record,) = get(client, host, site.port)
    witness = site.witness(world.FAR4, record["lport"])
    assert (record["state"], record["error"]) == ("closed", None)
    assert (record["host"], record["host_source"]) == (host, "lookup")
    assert (record["dns"], record["dns_disp"]) == ([world.FAR4], 1)
    assert record["dns_source"] == client.resolver
    assert record["dns_match"] in client.match
    assert record["dns_us"] == Within(lab.resolver.waited_us(host))
    assert record["peer"] == world.FAR4
    assert record["sockconn_us"] == Between(world.RTT_US, world.RTT_US + world.LINK_LATE_US)
    tls = record["tls"]
    assert (tls["result"], tls["version"], tls["resumed"]) == ("ok", f"TLSv{client.tls}", False)
    assert tls["sni"] in (host, f"{host}:{site.port}")  # hey sends the port, too
    assert tls["source"] == client.source
    least = (witness.hello_reply_ns - witness.hello_ns) / 1e3 + world.RTT_US
    assert record["tls_us"] == Between(least, least + world.RTT_US + OWN_WORK_US)
    request = witness.requests[0]
    answered_us = (request.response_ns - request.first_byte_ns) / 1e3 + world.RTT_US
    # a request in several packets may wait for the acknowledgement of its first
    assert record["txn_resp_us"] == Between(
        answered_us * 0.95, answered_us * 1.05 + world.RTT_US + 500
    )


@each()
def test_no_such_name(lab, sites, get, client):
    host = "no-such-name.lab.test"
    records = get(client, host, sites["1.3"].port)
    for record in records:
        assert (record["host"], record["error"]) == (host, "EAI_NONAME")
        assert (record["state"], record["dns"], record["dns_disp"]) == ("failed", [], 3)
        assert record["dns_source"] == client.resolver
        assert record["peer"] is None and record["attempts"] in (None, [])


@each()
def test_refused(lab, get, client):
    host = lab.name("fleet-refused", world.FAR4)
    records = get(client, host, 7998)  # nobody listens; browsers forbid the well-known ones
    for record in records:
        assert (record["host"], record["host_source"]) == (host, "lookup")
        assert (record["state"], record["error"]) == ("failed", "ECONNREFUSED")
        assert record["attempts"][0]["result"] == "refused"
        assert record["attempts"][0]["us"] == Between(
            world.RTT_US, world.RTT_US + world.LINK_LATE_US
        )
        assert record["tls"] is None and record["txn_resp_us"] is None


@each([client for client in FLEET if client.checks != "never"])
def test_a_certificate_that_nobody_trusts(lab, sites, get, client):
    host = lab.name("fleet-untrusted", world.FAR4)
    records = get(client, host, sites["untrusted"].port)
    for record in records:
        assert (record["host"], record["peer"]) == (host, world.FAR4)
        assert record["txn_resp_us"] is None
        if client.checks == "during":
            assert (record["state"], record["error"]) == ("failed", "EPROTO")
            assert record["tls"]["result"] == "rejected"
            assert record["tls_us"] is None
        else:  # the handshake was well; what the program thinks of it afterwards is its own
            result = "ok" if client.name == "lftp" else "unused"  # lftp asks before it looks
            assert (record["state"], record["tls"]["result"]) == ("closed", result)
