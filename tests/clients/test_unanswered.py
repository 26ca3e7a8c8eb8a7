"""Requests that got no answer, and connections that nothing was asked of."""

import json
import socket

import pytest

import conmon
from tests.clients.expectations import Between
from tests.lab import world
from tests.lab.dialogue import Dialogue, Hear, Say, Secure
from tests.lab.programs import PYTHON, SCRIPTS, Curl, Wget
from tests.lab.servers import Behaviour, Cut

pytestmark = pytest.mark.client("curl", "ip", "wget")

GET = "GET /1 HTTP/1.1\r\nHost: x\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
FAR = pytest.mark.parametrize("address", [world.FAR4, world.FAR6], ids=["ipv4", "ipv6"])
SCHEMES = pytest.mark.parametrize("tls", [None, "1.2", "1.3"], ids=["plain", "tls-1.2", "tls-1.3"])


@pytest.fixture
def talk(lab, watch):
    """Serve one script at an address, and talk to it; the program's words and its record."""
    open_ones = []

    def run(address, serve, *steps, tls=None):
        space = lab.there if address in (world.FAR4, world.FAR6) else lab.here
        dialogue = Dialogue(space, address, lab.free_port(), serve)
        open_ones.append(dialogue)
        first = {"address": address, "port": dialogue.port, "tls": tls}
        stdin = "".join(f"{json.dumps(line)}\n" for line in (first, *steps))
        seen = watch.run([PYTHON, str(SCRIPTS / "talk.py")], stdin=stdin)
        return seen.done.stdout.split(), seen.record

    yield run
    for dialogue in open_ones:
        dialogue.close()


def ends(record):
    return record["state"], record["error"]


def context_of(lab, tls):
    return lab.tls(tls) if tls else None


@FAR
@SCHEMES
def test_the_server_hangs_up_instead_of_answering(lab, watch, address, tls):
    site = lab.serve(Behaviour(tls=context_of(lab, tls), cut=Cut.FIN_AFTER_REQUEST), address)
    seen = watch.program(Curl(lab), address, site.port, tls)
    assert seen.done.code == 52  # empty reply from server
    record = seen.record
    assert ends(record) == ("failed", "ENODATA")
    assert (record["peer"], record["txn_resp_us"], record["turns"]["count"]) == (address, None, 0)
    assert (record["tls"] or {}).get("result") == ("ok" if tls else None)
    if not tls:
        assert record["prot_specific"] == {"protocol": "http", "method": "GET", "version": "1.1"}


@SCHEMES
@pytest.mark.parametrize(
    ("address", "seconds", "error"),
    [(world.FAR4, 0.5, "ECANCELED"), (world.FAR6, 1.1, "ETIMEDOUT")],
    ids=["soon", "late"],
)
def test_the_client_gives_up_waiting(lab, watch, address, seconds, error, tls):
    site = lab.serve(Behaviour(tls=context_of(lab, tls), cut=Cut.SILENT_AFTER_REQUEST), address)
    argv = Curl(lab).to_urls(
        f"http{'s' if tls else ''}://{f'[{address}]' if ':' in address else address}:{site.port}/",
        tls=tls,
        options=["--max-time", str(seconds)],
    )
    seen = watch.run(argv)
    assert seen.done.code == 28
    assert ends(seen.record) == ("failed", error)
    assert seen.record["duration_us"] == Between(seconds * 800_000, seconds * 1_500_000)
    asked = conmon.Daemon(watch.daemon.socket)
    waited = {one.id for one in asked.records(slow=f"{seconds * 700:.0f}ms", failed=True)}
    assert seen.record["id"] in waited
    longer = {one.id for one in asked.records(slow=f"{seconds * 1600:.0f}ms")}
    assert seen.record["id"] not in longer


def test_a_program_that_shut_down_its_direction_still_waits(talk):
    half = ["shutdown", socket.SHUT_WR]
    heard, record = talk(
        world.FAR4, [Hear(b"\r\n\r\n"), Say(b"", 0.2)], ["say", GET], half, ["hear", 5]
    )
    assert heard == ["b''"]
    assert ends(record) == ("failed", "ENODATA")
    # of what may want no answer nothing is said
    heard, record = talk(world.FAR4, [Hear(4), Say(b"", 0.2)], ["say", "x 1\n"], half, ["hear", 5])
    assert ends(record) == ("closed", None)


@pytest.mark.parametrize("address", [world.NEAR4, world.FAR6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("said", ["any thing at all", GET], ids=["any", "http"])
def test_a_half_closed_connection_that_is_reset(talk, address, said):
    # the server closes and has not read it all
    serve = [Hear(4), Say(b"", 0.2)]
    half = ["shutdown", socket.SHUT_WR]
    heard, record = talk(address, serve, ["say", said], half, ["hear", 5])
    assert heard == ["ConnectionResetError"]
    assert ends(record) == ("failed", "ECONNRESET")
    # who has closed wants to know nothing
    _, record = talk(address, serve, ["say", "any thing at all"], half)
    assert ends(record) == ("closed", None)


@FAR
@pytest.mark.parametrize("offers", [None, ["http/1.1"], []], ids=["plain", "alpn", "no-alpn"])
def test_a_kept_connection_that_the_server_closed_meanwhile(lab, talk, address, offers):
    serve = [Hear(b"\r\n\r\n"), Say(OK)]
    if offers is not None:
        serve = [Secure(lab.tls("1.3")), *serve]
    again = ["say", GET]
    heard, record = talk(
        address, serve,
        ["say", GET], ["hear", 5], ["wait", 0.2], again, ["wait", 0.1], again, ["hear", 5],
        tls=offers,
    )  # fmt: skip
    assert heard[-1] in ("BrokenPipeError", "ConnectionResetError", "SSLEOFError", "b''")
    assert record["state"] == "closed"
    assert record["error"] in ("EPIPE", "ECONNRESET")
    assert record["turns"]["count"] == 1


@pytest.mark.parametrize("offers", [None, ["http/1.1"]], ids=["plain", "tls"])
def test_a_long_kept_connection_that_the_server_closed_meanwhile(lab, talk, offers):
    """The log of TLS records is full by then."""
    turns = 20
    serve = [step for _ in range(turns) for step in (Hear(b"\r\n\r\n"), Say(OK))]
    if offers is not None:
        serve = [Secure(lab.tls("1.2")), *serve]
    request = f"GET /1 HTTP/1.1\r\nHost: x\r\nUser-Agent: {'u' * 90}\r\n\r\n"
    asking = [["say", request], ["hear", 5]] * turns
    _, record = talk(
        world.NEAR4, serve, *asking, ["wait", 0.2], ["say", request], ["hear", 5], tls=offers
    )
    assert record["error"] in ("EPIPE", "ECONNRESET")
    assert (record["state"], record["turns"]["count"]) == ("closed", turns)


@pytest.mark.parametrize("offers", [None, ["http/1.1"]], ids=["plain", "tls"])
def test_a_kept_connection_that_both_sides_closed(lab, talk, offers):
    serve = [Hear(b"\r\n\r\n"), Say(OK)]
    if offers is not None:
        serve = [Secure(lab.tls("1.3")), *serve]
    _, record = talk(world.NEAR4, serve, ["say", GET], ["hear", 5], ["wait", 0.2], tls=offers)
    assert ends(record) == ("closed", None)


@pytest.mark.parametrize(
    ("said", "waits"),
    [("<34>1 host su: it went\n", 0.1), ("QUIT\r\n", 0), ("servers.one 1 1700000000\n", 1)],
)
def test_what_wants_no_answer_does_not_fail_without_one(talk, said, waits):
    _, record = talk(world.NEAR4, [Hear(len(said)), Say(b"", 1.5)], ["say", said], ["wait", waits])
    assert ends(record) == ("closed", None)


def unused(watch):
    return {one.id for one in conmon.Daemon(watch.daemon.socket).records(unused=True)}


@FAR
@pytest.mark.parametrize("tls", ["1.2", "1.3"])
def test_curl_finds_another_name_in_the_certificate(lab, watch, address, tls):
    site = lab.serve(Behaviour(tls=lab.tls(tls)), address)
    bracketed = f"[{address}]" if ":" in address else address
    argv = Curl(lab).to_urls(
        f"https://other.example:{site.port}/",
        tls=tls,
        options=["--resolve", f"other.example:{site.port}:{bracketed}"],
    )
    seen = watch.run(argv)
    assert seen.done.code == 60  # it matches no alternative name
    assert_unused(watch, seen.record)


def test_wget_finds_another_name_in_the_certificate(lab, watch):
    site = lab.serve(Behaviour(tls=lab.tls("1.3")), world.FAR4)
    name = "a.b." + lab.name("wrong", world.FAR4)
    lab.name("a.b.wrong", world.FAR4)
    seen = watch.program(Wget(lab), name, site.port, "1.3")
    assert seen.done.code == 5
    assert_unused(watch, seen.record)


def assert_unused(watch, record):
    assert ends(record) == ("closed", None)
    assert record["tls"]["result"] == "unused"
    assert record["tls_us"] is not None
    assert record["txn_resp_us"] is None
    assert record["id"] in unused(watch)


def test_what_was_used_is_not_unused(lab, watch):
    site = lab.serve(Behaviour(tls=lab.tls("1.3")), world.FAR4)
    seen = watch.program(Curl(lab), world.FAR4, site.port, "1.3")
    assert seen.record["tls"]["result"] == "ok"
    assert seen.record["id"] not in unused(watch)
