"""Connections that fail: one record each, the right error, and no invented figures."""

import dns.rcode
import pytest

from tests.clients.expectations import Between, Within, differences
from tests.lab import world
from tests.lab.programs import PYTHON, Curl, OpensslClient, Urllib, Wget
from tests.lab.servers import Behaviour, Cut

pytestmark = pytest.mark.client("curl", "ip", "openssl", "wget")

SYN_TIMEOUT_US = Between(1_900_000, 3_500_000)  # one retry; kernels differ in its backoff
CONNECT = """
import errno, socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])))
except OSError as error:
    print(errno.errorcode[error.errno])
"""

# Nothing was exchanged, so nothing of it may be reported.
NO_TALK = {
    "peer": None,
    "sockconn_us": None,
    "tls_us": None,
    "tls": None,
    "txn_resp_us": None,
    "greeting_us": None,
    "turns": None,
    "prot_specific": None,
}
NO_LOOKUP = {"host": None, "dns": None, "dns_us": None, "dns_disp": 0}


def agrees(record, wanted):
    """``differences()`` over the wanted keys alone."""
    return differences({key: record.get(key, "(missing)") for key in wanted}, wanted)


@pytest.mark.parametrize(
    ("address", "error", "result", "us"),
    [
        pytest.param(world.REFUSED4, "ECONNREFUSED", "refused", Between(0, 2000), id="refused-4"),
        pytest.param(world.REFUSED6, "ECONNREFUSED", "refused", Between(0, 2000), id="refused-6"),
        pytest.param(world.SILENT4, "ETIMEDOUT", "timeout", SYN_TIMEOUT_US, id="silent-4"),
        pytest.param(world.SILENT6, "ETIMEDOUT", "timeout", SYN_TIMEOUT_US, id="silent-6"),
        pytest.param(
            world.DEAD_NEIGHBOUR4, "EHOSTUNREACH", "unreachable", None, id="dead-neighbour-4"
        ),
        pytest.param(
            world.DEAD_NEIGHBOUR6, "EHOSTUNREACH", "unreachable", None, id="dead-neighbour-6"
        ),
        pytest.param(
            world.ROUTER_REFUSES4, "EHOSTUNREACH", "unreachable", None, id="router-refuses-4"
        ),
        pytest.param(
            # "no route" is what Linux as a router says, and ICMPv6 has a word of its own for it
            world.ROUTER_REFUSES6,
            "ENETUNREACH",
            "unreachable",
            None,
            id="router-refuses-6",
        ),
        pytest.param(world.UNREACHABLE4, "EHOSTUNREACH", "unreachable", None, id="no-way-4"),
        pytest.param(world.UNREACHABLE6, "EHOSTUNREACH", "unreachable", None, id="no-way-6"),
        pytest.param(world.NO_ROUTE4, "ENETUNREACH", "unreachable", None, id="no-route-4"),
        pytest.param(world.NO_ROUTE6, "ENETUNREACH", "unreachable", None, id="no-route-6"),
    ],
)
def test_connect_that_fails(lab, watch, address, error, result, us):
    seen = watch.run([PYTHON, "-c", CONNECT, address, str(world.CLOSED_PORT)])
    assert seen.done.stdout.strip() == error  # what the program itself was told
    record = seen.record
    attempt = {"raddr": address, "rport": world.CLOSED_PORT, "result": result, "errno": error}
    wanted = {
        **NO_TALK,
        "state": "failed",
        "error": error,
        "raddr": address,
        "rport": world.CLOSED_PORT,
        "comm": "python3",
        **({"attempts": [{**attempt, "us": us, "offset_us": 0}]} if us else {}),
    }
    assert agrees(record, wanted) == {}
    assert [one | attempt for one in record["attempts"]] == record["attempts"]
    assert len(record["attempts"]) == 1


def test_client_that_gives_up_waiting(lab, watch):
    name = lab.name("gives-up", world.SILENT4)
    argv = Curl(lab).to_urls(
        f"http://{name}:{world.CLOSED_PORT}/", options=["--connect-timeout", "0.3"]
    )
    seen = watch.run(argv)
    assert seen.done.code == 28
    record = seen.record
    assert agrees(record, {**NO_TALK, "state": "failed", "host": name, "dns_disp": 1}) == {}
    [attempt] = record["attempts"]
    assert attempt["result"] == "abandoned"
    assert attempt["us"] == Within(300_000)


@pytest.mark.parametrize(
    ("label", "answer", "disp", "error", "us"),
    [
        ("nx", {"rcode": dns.rcode.NXDOMAIN, "delay_s": 0.15}, 3, "EAI_NONAME", 150_000),
        ("empty", {"delay_s": 0.15}, 3, "EAI_NODATA", 150_000),
        ("mute", {"silent": True}, 2, "EAI_AGAIN", 1_000_000),
        ("servfail", {"rcode": dns.rcode.SERVFAIL, "delay_s": 0.15}, 2, "EAI_AGAIN", 150_000),
    ],
)
@pytest.mark.parametrize("program", [Curl, Wget, Urllib], ids=lambda program: program.name)
def test_name_without_an_address(lab, watch, program, label, answer, disp, error, us):
    name = lab.name(label, **answer)
    seen = watch.program(program(lab), name, world.CLOSED_PORT)
    assert seen.done.code != 0
    wanted = {
        **NO_TALK,
        "state": "failed",
        "error": error,
        "host": name,
        "dns_disp": disp,
        "dns_us": Within(us if answer.get("silent") else lab.resolver.waited_us(name)),
        "raddr": None,
        "attempts": [],
        "comm": program(lab).comm,
    }
    record = seen.record
    assert record["dns"] in (None, [])
    assert agrees(record, wanted) == {}


def test_no_resolver_at_all(lab, watch):
    with lab.resolver.away():
        seen = watch.program(Urllib(lab), lab.name("nobody-answers"), world.CLOSED_PORT)
    assert agrees(seen.record, {**NO_TALK, "state": "failed", "dns_disp": 2}) == {}
    assert seen.record["error"] == "EAI_AGAIN"


@pytest.mark.parametrize("program", [Curl, OpensslClient, Urllib], ids=lambda p: p.name)
def test_server_refuses_the_version_by_alert(lab, watch, program):
    site = lab.serve(Behaviour(tls=lab.tls("1.3")), world.FAR4)
    seen = watch.program(program(lab), world.FAR4, site.port, "1.2")
    assert seen.done.code != 0
    assert_failed_handshake(seen.record, "alert", "protocol_version", "EPROTO")


def test_server_refuses_every_cipher_by_alert(lab, watch):
    context = lab.tls("1.2", ciphers="ECDHE-ECDSA-AES256-GCM-SHA384")
    site = lab.serve(Behaviour(tls=context), world.FAR4)
    argv = Curl(lab).to_urls(
        f"https://{world.FAR4}:{site.port}/",
        tls="1.2",
        options=["--ciphers", "ECDHE-ECDSA-CHACHA20-POLY1305"],
    )
    seen = watch.run(argv)
    assert seen.done.code == 35
    assert_failed_handshake(seen.record, "alert", "handshake_failure", "EPROTO")


@pytest.mark.parametrize("tls", ["1.2", "1.3"])
@pytest.mark.parametrize("program", [Curl, OpensslClient, Urllib], ids=lambda p: p.name)
def test_client_rejects_the_certificate(lab, watch, program, tls):
    exact = lab.tls(tls).minimum_version
    context = lab.untrusted.context(minimum=exact, maximum=exact)
    site = lab.serve(Behaviour(tls=context), world.FAR4)
    seen = watch.program(program(lab), world.FAR4, site.port, tls)
    assert seen.done.code != 0
    # TLS 1.3 encrypts the client's alert, so its name is not always to be had.
    alert = "unknown_ca" if tls == "1.2" else seen.record["tls"]["alert"]
    assert alert in (None, "unknown_ca")
    assert_failed_handshake(seen.record, "rejected", alert, "EPROTO")
    assert seen.record["tls"]["version"] == f"TLSv{tls}"


def test_wget_rejects_the_certificate_after_the_handshake(lab, watch):
    # GnuTLS leaves the check to the program, which makes it when the handshake is over: what
    # reaches the wire is a complete handshake, and a close.
    site = lab.serve(Behaviour(tls=lab.untrusted.context()), world.FAR4)
    seen = watch.program(Wget(lab), world.FAR4, site.port, "1.3")
    assert seen.done.code == 5  # certificate verification
    record = seen.record
    assert record["tls"]["result"] in ("unused", "rejected")
    assert record["txn_resp_us"] is None
    assert record["prot_specific"] is None


@pytest.mark.parametrize("tls", ["1.2", "1.3"])
@pytest.mark.parametrize(
    ("cut", "result", "error"),
    [
        pytest.param(Cut.FIN_AFTER_HELLO, "closed", "EPROTO", id="fin"),
        pytest.param(Cut.RESET_AFTER_HELLO, "reset", "ECONNRESET", id="reset"),
    ],
)
@pytest.mark.parametrize("program", [Curl, OpensslClient, Urllib, Wget], ids=lambda p: p.name)
def test_server_leaves_during_the_handshake(lab, watch, program, cut, result, error, tls):
    site = lab.serve(Behaviour(tls=lab.tls(tls), cut=cut), world.FAR4)
    seen = watch.program(program(lab), world.FAR4, site.port, tls)
    assert seen.done.code != 0
    assert_failed_handshake(seen.record, result, None, error)


@pytest.mark.parametrize(
    ("seconds", "result", "error"),
    [
        pytest.param("0.5", "failed", "ECANCELED", id="soon"),
        pytest.param("1.5", "timeout", "ETIMEDOUT", id="late"),
    ],
)
def test_client_gives_up_during_the_handshake(lab, watch, seconds, result, error):
    site = lab.serve(Behaviour(tls=lab.tls("1.3"), cut=Cut.SILENT_AFTER_HELLO), world.FAR4)
    argv = Curl(lab).to_urls(f"https://{world.FAR4}:{site.port}/", options=["--max-time", seconds])
    seen = watch.run(argv)
    assert seen.done.code == 28
    record = seen.record
    assert (record["state"], record["error"]) == ("failed", error)
    assert record["tls"]["result"] == result
    assert record["txn_resp_us"] is None


@pytest.mark.parametrize("tls", [None, "1.2", "1.3"])
def test_server_resets_instead_of_answering(lab, watch, tls):
    context = lab.tls(tls) if tls else None
    site = lab.serve(Behaviour(tls=context, cut=Cut.RESET_AFTER_REQUEST), world.FAR4)
    seen = watch.program(Curl(lab), world.FAR4, site.port, tls)
    wanted = {"error": "ECONNRESET", "txn_resp_us": None, "peer": world.FAR4}
    assert agrees(seen.record, wanted) == {}
    assert seen.record["sockconn_us"] == Between(world.RTT_US, world.RTT_US + world.LINK_LATE_US)
    assert (seen.record["tls"] or {}).get("result") == ("ok" if tls else None)


def assert_failed_handshake(record, result, alert, error):
    """Connected, and then no TLS: the connect figure stands, no TLS or response figure does."""
    wanted = {
        "state": "failed",
        "error": error,
        "peer": world.FAR4,
        "sockconn_us": Between(world.RTT_US, world.RTT_US + world.LINK_LATE_US),
        "txn_resp_us": None,
        "prot_specific": None,
        **NO_LOOKUP,
    }
    assert agrees(record, wanted) == {}
    assert record["tls"]["result"] == result
    assert record["tls"]["alert"] == alert
