"""The lab proves itself, with curl's own timers as witness and no conmond.

A figure that these tests hold to is one that a client test may hold conmond to.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import dns.rcode
import pytest

from tests.lab import netns, world
from tests.lab.programs import Curl, run, run_many
from tests.lab.servers import Behaviour, Cut

pytestmark = pytest.mark.client("curl", "getent", "ip")

DNS_S, HELLO_S, RESPONSE_S = 0.150, 0.170, 0.190


LATE_US = 40_000


class near:
    """A delay made by sleeping: never short, and late by scheduling alone.

    How late, a busy machine decides; each client test holds conmond to what curl itself measured.
    """

    def __init__(self, seconds):
        self.least_us = seconds * 1e6 - 500

    def __eq__(self, measured_us):
        return self.least_us <= measured_us <= self.least_us + LATE_US

    def __repr__(self):
        return f"{self.least_us:.0f} to {self.least_us + LATE_US:.0f} us"


@pytest.fixture(scope="module")
def sites(lab):
    delays = {"hello_delay_s": HELLO_S, "response_delay_s": RESPONSE_S}
    return {
        None: lab.serve(Behaviour(response_delay_s=RESPONSE_S)),
        "1.2": lab.serve(Behaviour(tls=lab.tls("1.2"), **delays)),
        "1.3": lab.serve(Behaviour(tls=lab.tls("1.3"), **delays)),
    }


@pytest.mark.parametrize("address", [world.FAR4, world.FAR6])
@pytest.mark.parametrize("tls", [None, "1.2", "1.3"])
def test_known_delays_are_what_curl_measures(lab, sites, address, tls):
    name = lab.name("delays", address, delay_s=DNS_S)
    curl = Curl(lab)
    done = run(lab.here, curl.argv(name, sites[tls].port, tls))
    timers = curl.timers(done)
    assert timers.namelookup_us == near(DNS_S)
    assert world.RTT_US <= timers.sockconn_us <= world.RTT_US + world.LINK_LATE_US
    if tls:
        trips = {"1.2": 2, "1.3": 1}[tls]
        work_us = 15_000  # the cryptography of both sides and certificate loading
        wanted = HELLO_S * 1e6 + trips * world.RTT_US
        assert wanted <= timers.tls_us <= wanted + work_us
    assert timers.response_us == near(RESPONSE_S + world.RTT_US / 1e6)


def test_server_saw_what_curl_did(lab, sites):
    name = lab.name("witness", world.FAR4)
    curl = Curl(lab)
    done = run(lab.here, curl.argv(name, sites["1.3"].port, "1.3"))
    seen = sites["1.3"].witness(world.FAR4, curl.timers(done).local_port)
    assert seen.sni == name
    assert seen.tls_version == "TLSv1.3"
    assert (seen.hello_reply_ns - seen.hello_ns) / 1e3 == near(HELLO_S)
    request = seen.requests[0]
    assert request.line == "GET / HTTP/1.1"
    assert (request.response_ns - request.first_byte_ns) / 1e3 == near(RESPONSE_S)


@pytest.mark.parametrize(
    ("address", "code", "least_s"),
    [
        (world.REFUSED4, 7, 0),
        (world.REFUSED6, 7, 0),
        (world.SILENT4, 28, 2),
        (world.SILENT6, 28, 2),
        (world.DEAD_NEIGHBOUR4, 7, 0.05),
        (world.DEAD_NEIGHBOUR6, 7, 0.05),
        (world.UNREACHABLE4, 7, 0),
        (world.UNREACHABLE6, 7, 0),
        (world.NO_ROUTE4, 7, 0),
        (world.NO_ROUTE6, 7, 0),
        (world.ROUTER_REFUSES4, 7, 0.02),
        (world.ROUTER_REFUSES6, 7, 0.02),
    ],
)
def test_addresses_that_lead_nowhere(lab, address, code, least_s):
    done = run(lab.here, Curl(lab).argv(address, world.CLOSED_PORT))
    assert done.code == code  # 7 could not connect, 28 timed out
    assert done.seconds >= least_s


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        ({"silent": True}, 1.0),
        ({"rcode": dns.rcode.SERVFAIL}, 0.0),
        ({"rcode": dns.rcode.NXDOMAIN}, 0.0),
    ],
)
def test_names_without_an_answer(lab, answer, seconds):
    name = lab.name("nothing", world.NEAR4, **answer)
    done = run(lab.here, Curl(lab).argv(name, world.CLOSED_PORT))
    assert done.code == 6
    assert seconds <= done.seconds < seconds + 0.5


def test_long_answer_comes_over_tcp(lab):
    name = lab.name("long", *(f"10.66.7.{number}" for number in range(1, 101)))
    done = run(lab.here, ["getent", "ahostsv4", name])
    assert len({line.split()[0] for line in done.stdout.splitlines()}) == 100
    assert [query.transport for query in lab.resolver.queries if query.name == name][-1] == "tcp"


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize(
    ("cut", "code"),
    [
        (Cut.FIN_AFTER_HELLO, 35),  # TLS handshake failed
        (Cut.RESET_AFTER_HELLO, 35),
        (Cut.FIN_AFTER_REQUEST, 52),  # nothing came back
        (Cut.RESET_AFTER_REQUEST, 56),  # receiving failed
    ],
)
def test_servers_that_break_off(lab, version, cut, code):
    site = lab.serve(Behaviour(tls=lab.tls(version), cut=cut), world.NEAR4)
    assert run(lab.here, Curl(lab).argv(world.NEAR4, site.port, version)).code == code


def test_many_clients_at_once(lab):
    site = lab.serve(Behaviour(tls=lab.tls("1.3"), response_delay_s=0.05), world.NEAR4)
    names = [lab.name(f"many{number}", world.NEAR4) for number in range(23)]
    done = run_many(lab.here, [Curl(lab).argv(name, site.port, "1.3") for name in names])
    assert [one.code for one in done] == [0] * 23
    assert {seen.sni for seen in site.servers[world.NEAR4].witnesses} == set(names)


def test_nothing_is_left_of_a_namespace():
    with netns.namespace() as space:
        left_behind = space.popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=None)
        inside = Path(f"/proc/{left_behind.pid}/ns/net")
        deadline = time.monotonic() + 5
        while inside.stat().st_ino != space.inode:  # it is on its way there
            assert time.monotonic() < deadline
            time.sleep(0.01)
        etc = netns.ETC_DIR / space.name
        assert space.path.exists()
        assert etc.exists()
    assert not space.path.exists()
    assert not etc.exists()
    assert left_behind.wait(timeout=5) == -9


def test_leftovers_of_a_dead_run_are_removed():
    dead = f"{netns.PREFIX}4194999-1"  # beyond the highest pid there can be
    netns._ip("netns", "add", dead)
    assert dead in netns.remove_stale()
    assert not (netns.RUN_DIR / dead).exists()
