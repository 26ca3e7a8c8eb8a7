"""Ways to look a name up: the C library's other functions, musl, static programs, DNS over TCP."""

import json
import subprocess
import sys

import dns.rcode
import pytest

from tests.clients.expectations import Between, Within
from tests.lab import world
from tests.lab.netns import namespace
from tests.lab.programs import PYTHON, SCRIPTS, run
from tests.lab.resolver import Name, Resolver
from tests.lab.servers import Behaviour, Server

pytestmark = pytest.mark.client("dig", "gcc", "hey", "ip", "musl-gcc", "nft", "rclone")

DNS_S = 0.060
FUNCTIONS = ["gethostbyname", "gethostbyname2", "gethostbyname_r", "gethostbyname2_r"]
BUILDS = {
    "glibc": ["gcc"],
    "glibc-static": ["gcc", "-static"],
    "musl": ["musl-gcc"],
    "musl-static": ["musl-gcc", "-static"],
}


@pytest.fixture(scope="module", params=BUILDS)
def program(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("resolve") / "resolve"
    libraries = ["-lanl"] if request.param.startswith("glibc") else []
    # the linker warns of what glibc loads at run time even so
    subprocess.run(
        [*BUILDS[request.param], "-w", "-o", path, SCRIPTS / "resolve.c", *libraries],
        check=True,
        capture_output=True,
    )
    return str(path)


@pytest.fixture(scope="module")
def site(lab):
    return lab.serve(Behaviour(), world.FAR4)


@pytest.mark.parametrize("function", [*FUNCTIONS, "getaddrinfo"])
def test_every_function_of_every_c_library(lab, watch, site, program, function):
    host = lab.name("resolve", world.FAR4, delay_s=DNS_S)
    seen = watch.run([program, function, host, str(site.port)])
    record = seen.record
    assert (record["host"], record["dns"], record["peer"]) == (host, [world.FAR4], world.FAR4)
    assert record["dns_us"] == Within(lab.resolver.waited_us(host))
    # where the linker left the probed function out of a static program, the wire tells
    assert record["dns_source"] in ("getaddrinfo", "wire")
    assert record["dns_match"] == "thread"


@pytest.mark.parametrize("program", ["glibc"], indirect=True)
def test_a_lookup_in_the_background(lab, watch, site, program):
    host = lab.name("resolve", world.FAR4, delay_s=DNS_S)
    record = watch.run([program, "getaddrinfo_a", host, str(site.port)]).record
    assert (record["host"], record["dns_match"]) == (host, "process")  # a thread of glibc's asks


@pytest.mark.parametrize("function", [*FUNCTIONS, "getaddrinfo"])
@pytest.mark.parametrize(
    ("rcode", "errors"),
    [
        pytest.param(dns.rcode.NXDOMAIN, {"EAI_NONAME"}, id="nxdomain"),
        # musl's getaddrinfo() and glibc's have each their own word for a server that fails
        pytest.param(dns.rcode.SERVFAIL, {"EAI_AGAIN"}, id="servfail"),
    ],
)
def test_failures_of_every_function(lab, watch, site, program, function, rcode, errors):
    host = lab.name("resolve-fails", rcode=rcode, delay_s=DNS_S)
    seen = watch.run([program, function, host, str(site.port)])
    assert seen.done.code == 1
    record = seen.record
    assert (record["host"], record["state"], record["dns"]) == (host, "failed", [])
    assert record["error"] in errors
    assert record["dns_us"] >= DNS_S * 1e6


def test_an_answer_that_only_fits_tcp(lab, watch, site):
    # Go asks over UDP, is told to ask over TCP, and does
    addresses = [f"10.66.7.{number}" for number in range(1, 120)]
    host = lab.name("many-addresses", world.FAR4, *addresses, delay_s=DNS_S)
    argv = ["rclone", "--retries=1", "--low-level-retries=1", "copyurl", "--stdout"]
    seen = watch.run(
        [*argv, f"http://{host}:{site.port}/"], wanted=lambda r: r["rport"] == site.port
    )
    record = seen.record
    assert (record["host"], record["dns_source"]) == (host, "wire")
    assert record["peer"] == world.FAR4
    assert sorted(record["dns"]) == sorted([world.FAR4, *addresses])
    # both exchanges are what the program waited for
    assert record["dns_us"] == Between(2 * DNS_S * 1e6, 3 * DNS_S * 1e6)
    transports = [q.transport for q in lab.resolver.queries if q.name == host and q.rdtype == "A"]
    assert transports == ["udp", "tcp"]


def test_asking_over_tcp_is_a_connection_of_its_own(lab, watch):
    host = lab.name("asked", world.FAR4, delay_s=DNS_S)
    earlier = len(watch.daemon.records())
    done = subprocess.run(
        ["ip", "netns", "exec", lab.here.name, "dig", "+tcp", "+short", f"@{world.RESOLVER}", host],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [world.FAR4]
    watch.settle()
    (record,) = [
        r for r in watch.daemon.records()[earlier:] if r["comm"] == "dig" and r["rport"] == 53
    ]
    assert (record["peer"], record["host"]) == (world.RESOLVER, None)
    assert record["txn_resp_us"] == Within(DNS_S * 1e6)


def test_nobody_answers(lab, watch, site):
    host = lab.name("silent-name", silent=True)
    seen = watch.run(
        ["rclone", "--retries=1", "--low-level-retries=1", "copyurl", "--stdout",
         f"http://{host}:{site.port}/"],
        wanted=lambda r: r["host"] == host,
        timeout_s=30,
    )  # fmt: skip
    record = seen.record
    assert (record["state"], record["error"], record["dns_disp"]) == ("failed", "EAI_AGAIN", 2)
    assert record["dns_us"] is None  # when the program gave up is not to be seen


# As in a container of Docker's: what is asked of 127.0.0.11 goes to a port that changes.
DOCKER = """add table ip nat; add chain ip nat out { type nat hook output priority -100; };
add rule ip nat out ip daddr 127.0.0.11 udp dport 53 dnat to 127.0.0.11:34567;
add rule ip nat out ip daddr 127.0.0.11 tcp dport 53 dnat to 127.0.0.11:34567"""


def test_questions_that_are_sent_on_to_another_port(watch):
    host = "docker.lab.test"
    with namespace(nameserver="127.0.0.11") as space:
        assert run(space, ["nft", DOCKER]).code == 0
        zone = {host: Name(a=("127.0.0.1",), delay_s=DNS_S)}
        resolver = Resolver(space, "127.0.0.11", zone, port=34567)
        server = Server(space, "127.0.0.1", 8080, Behaviour())
        try:
            argv = ["hey", "-n", "1", "-c", "1", f"http://{host}:8080/"]
            record = watch.run(argv, space=space).record
            waited_us = resolver.waited_us(host)
        finally:
            server.close()
            resolver.close()
    assert (record["host"], record["dns_source"], record["peer"]) == (host, "wire", "127.0.0.1")
    assert record["dns_us"] == Within(waited_us)


def own_resolver(site, *names):
    script = str(SCRIPTS / "own_resolver.py")
    return [PYTHON, script, world.RESOLVER, str(site.port), *names]


def test_a_search_list_is_one_lookup_from_its_first_question_on(lab, watch, site):
    lab.name("api.ns.svc", rcode=dns.rcode.NXDOMAIN, delay_s=DNS_S)
    host = lab.name("api.svc", world.FAR4, delay_s=DNS_S)
    seen = watch.run(own_resolver(site, f"api.ns.svc.{world.DOMAIN}", host))
    record = seen.record
    assert (record["host"], record["dns_source"], record["state"]) == (host, "wire", "closed")
    assert record["dns_us"] == Between(2 * DNS_S * 1e6, 3 * DNS_S * 1e6)


def test_a_process_whose_first_lookup_failed_on_the_wire_is_one_row(lab, watch, site):
    alone = lab.name("alone", rcode=dns.rcode.NXDOMAIN)
    host = lab.name("found", world.FAR4)
    seen = watch.run(own_resolver(site, alone, host), count=2)
    assert {(r["host"], r["state"]) for r in seen.records} == {(alone, "failed"), (host, "closed")}
    ps = [sys.executable, "-m", "monitor.cli.conmonctl", "ps", "--json"]
    ps += ["--socket", watch.daemon.socket, "--pid", str(seen.done.pid)]
    done = subprocess.run(ps, check=True, capture_output=True, text=True, cwd=SCRIPTS.parents[2])
    rows = json.loads(done.stdout)["processes"]
    assert len(rows) == 1, rows
