"""What happens on a connection once it stands: tickets, greetings, several requests."""

import pytest

from tests.clients.expectations import Between, Within
from tests.lab import world
from tests.lab.programs import (
    PYTHON,
    SCRIPTS,
    Asyncio,
    Curl,
    NodeHttps,
    OpensslClient,
    Urllib,
    Wget,
)
from tests.lab.servers import Behaviour

pytestmark = pytest.mark.client("curl", "ip", "node", "openssl", "wget")

ANSWER_S = 0.200
PROGRAMS = [Curl, Wget, Urllib, Asyncio, NodeHttps, OpensslClient]
TALK = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as sock:
    sock.recv(4096)
    sock.sendall(b"QUIT / HTTP/1.1\\r\\nConnection: close\\r\\n\\r\\n")
    while sock.recv(4096):
        pass
"""


@pytest.mark.parametrize("tickets", [0, 1, 2, 4])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_tickets_are_not_the_answer(lab, watch, program, tickets):
    context = lab.tls("1.3", tickets=tickets)
    behaviour = Behaviour(tls=context, hello_delay_s=0.150, response_delay_s=ANSWER_S)
    site = lab.serve(behaviour, world.FAR4)
    client = program(lab)
    seen = watch.program(client, world.FAR4, site.port, "1.3")
    record = seen.record
    assert record["txn_resp_us"] == Within(ANSWER_S * 1e6 + world.RTT_US)
    assert record["tls"]["result"] == "ok"
    if isinstance(client, Curl):
        timers = client.timers(seen.done)
        assert record["txn_resp_us"] == Within(timers.response_us)
        assert record["tls_us"] == Within(timers.tls_us)


@pytest.mark.parametrize("program", [Curl, Urllib], ids=lambda program: program.name)
def test_tickets_that_come_with_the_answer(lab, watch, program):
    context = lab.tls("1.3")
    behaviour = Behaviour(tls=context, response_delay_s=ANSWER_S, tickets_with_response=True)
    site = lab.serve(behaviour, world.FAR4)
    record = watch.program(program(lab), world.FAR4, site.port, "1.3").record
    assert record["txn_resp_us"] == Within(ANSWER_S * 1e6 + world.RTT_US)


def test_answer_at_once_with_tickets_before_it(lab, watch):
    # An answer within a round trip must not be taken for a ticket either.
    site = lab.serve(Behaviour(tls=lab.tls("1.3")), world.FAR4)
    client = Curl(lab)
    seen = watch.program(client, world.FAR4, site.port, "1.3")
    assert seen.record["txn_resp_us"] == Within(client.timers(seen.done).response_us)


def test_server_that_speaks_first(lab, watch):
    behaviour = Behaviour(
        greeting=b"220 lab ready\r\n", greeting_delay_s=0.150, response_delay_s=0.190
    )
    site = lab.serve(behaviour, world.FAR4)
    seen = watch.run([PYTHON, "-c", TALK, world.FAR4, str(site.port)])
    record = seen.record
    witness = site.witness(world.FAR4, record["lport"])
    waited_us = (witness.greeting_ns - witness.accepted_ns) / 1e3
    # The server accepts when the client's ACK is there, half a round trip after the client.
    assert record["greeting_us"] == Within(waited_us + world.RTT_US)
    assert record["txn_resp_us"] == Within(0.190 * 1e6 + world.RTT_US)


@pytest.mark.parametrize("tls", [None, "1.2", "1.3"])
def test_several_requests_on_one_connection(lab, watch, tls):
    context = lab.tls(tls) if tls else None
    site = lab.serve(Behaviour(tls=context, response_delay_s=0.050), world.FAR4)
    place = f"{'https' if tls else 'http'}://{world.FAR4}:{site.port}"
    argv = Curl(lab).to_urls(*(f"{place}/{number}" for number in range(5)), tls=tls)
    seen = watch.run(argv)
    assert len(site.servers[world.FAR4].witnesses) == 1
    turn_us = 50_000 + world.RTT_US
    record = seen.record
    assert record["turns"]["count"] == 5
    assert record["turns"]["max_us"] == Between(turn_us, turn_us * 1.2)
    assert record["turns"]["sum_us"] == Within(5 * turn_us)
    assert record["txn_resp_us"] == Within(turn_us)


@pytest.mark.parametrize("tls", ["1.2", "1.3"])
def test_resumed_session(lab, watch, tls):
    name = lab.name("resumed", world.FAR4)
    site = lab.serve(Behaviour(tls=lab.tls(tls)), world.FAR4)
    script = str(SCRIPTS / "resume.py")
    seen = watch.run([PYTHON, script, name, str(site.port), tls, str(lab.ca_file)], count=2)
    assert seen.done.code == 0, seen.done.stderr
    resumed = {
        record["lport"]: (record["tls"]["resumed"], record["tls"]["result"])
        for record in seen.records
    }
    witnesses = site.servers[world.FAR4].witnesses
    assert resumed == {witness.peer[1]: (witness.tls_resumed, "ok") for witness in witnesses}


@pytest.mark.parametrize("status", [200, 204, 301, 404, 503])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
def test_plain_status_and_method(lab, watch, plain_site, status, method):
    options = ["--head"] if method == "HEAD" else ["--request", method]
    address = f"http://{world.NEAR4}:{plain_site.port}/status/{status}"
    record = watch.run(Curl(lab).to_urls(address, options=options)).record
    assert record["prot_specific"] == {
        "protocol": "http",
        "resp": status,
        "method": method,
        "version": "1.1",
    }


def test_something_else_than_http(lab, watch):
    site = lab.serve(Behaviour(greeting=b"SSH-2.0-lab\r\n"), world.NEAR4)
    program = (
        "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2]))).recv(99)"
    )
    record = watch.run([PYTHON, "-c", program, world.NEAR4, str(site.port)]).record
    assert record["prot_specific"] is None
    assert record["txn_resp_us"] is None
    assert record["turns"] is None or record["turns"]["count"] == 0


@pytest.fixture(scope="module")
def plain_site(lab):
    return lab.serve(Behaviour(), world.NEAR4)
