"""connect() that fails within the call: the errno that the program was told, or none."""

import contextlib
import itertools
import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from monitor.kernel import bpf_syscall
from tests.lab import netns
from tests.lab.daemon import of_pids
from tests.lab.programs import PYTHON

pytestmark = pytest.mark.client("ip", "nft")

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests/lab/scripts/try_connects.py"
V6ONLY = (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
REUSE = (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
MARK = (socket.SOL_SOCKET, socket.SO_MARK, 7)
SILENT4, SILENT6 = "10.77.0.9", "fd77::9"
LISTENER = 7000
DENY = b"\xb7" + bytes(7) + b"\x95" + bytes(7)  # return 0
RULES = """
table inet own {
  chain out {
    type filter hook output priority 0;
    tcp dport 7100-7104 reject
    tcp dport 7110-7114 reject with icmpx type admin-prohibited
    tcp dport 7120-7124 reject with tcp reset
    tcp dport 7130-7134 reject with icmpx type no-route
  }
}
"""


@pytest.fixture(scope="module")
def space():
    with netns.namespace() as made:
        made.ip("link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
        made.ip("addr", "add", "10.77.0.1/24", "dev", "lan0")
        made.ip("addr", "add", "fd77::1/64", "dev", "lan0", "nodad")
        for device in ("lan0", "lan1"):
            made.ip("link", "set", device, "up")
        for silent in (SILENT4, SILENT6):
            made.ip(
                "neigh", "add", silent, "lladdr", "02:00:00:00:00:77", "dev", "lan0",
                "nud", "permanent",
            )  # fmt: skip
        for kind, number in (("unreachable", 1), ("prohibit", 2), ("blackhole", 3)):
            made.ip("route", "add", kind, f"10.78.{number}.0/24")
            made.ip("-6", "route", "add", kind, f"fd78:{number}::/64")
        for version in ("-4", "-6"):
            made.ip(version, "rule", "add", "fwmark", "7", "table", "77")
            made.ip(version, "route", "add", "unreachable", "default", "table", "77")
        made.sysctl("net.ipv4.tcp_syn_retries", 1)
        subprocess.run(made.command(["nft", "-f", "-"]), input=RULES, text=True, check=True)
        yield made


@pytest.fixture(scope="module")
def listener(space):
    """Takes connections on every address."""

    def listen():
        return socket.create_server(
            ("::", LISTENER), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64
        )

    with space.call(listen) as sock:
        yield sock


# A run leaves its ports in TIME_WAIT.
_fresh_ports = itertools.count(50_000, 2)


@contextlib.contextmanager
def two_ports(space):
    """All that there is to connect from: kernels keep the odd and the even ones apart."""
    name = "net.ipv4.ip_local_port_range"
    first = next(_fresh_ports)
    space.sysctl(name, f"{first} {first + 1}")
    try:
        yield
    finally:
        space.sysctl(name, "32768 60999")


def tried(watch, space, ways):
    """What the program was told, and the record of each try, in order."""
    stdin = "".join(f"{json.dumps(way)}\n" for way in ways)
    seen = watch.run([PYTHON, str(SCRIPT)], stdin=stdin, space=space, count=len(ways))
    told = [json.loads(line) for line in seen.done.stdout.splitlines()]
    assert len(told) == len(ways), seen.done.stderr
    records = sorted(seen.records, key=lambda record: record["start"])
    assert [record["rport"] for record in records] == [way["port"] for way in ways]
    return told, records


def way(address, port=9, **more):
    return {"address": address, "port": port, **more}


def errors(records):
    for record in records:
        if record["error"] is not None:
            assert record["state"] == "failed"
            assert record["attempts"][0]["errno"] in (record["error"], None)
    return [record["error"] for record in records]


WITHOUT_A_WAY = [
    *(way(f"10.78.{number}.1") for number in (1, 2, 3)),
    *(way(f"fd78:{number}::1") for number in (1, 2, 3)),
    *(way(f"::ffff:10.78.{number}.1") for number in (1, 2, 3)),
    way("192.0.2.1"),
    way("2001:db8::1"),
    way("10.77.0.255"),
    way("255.255.255.255"),
    way("::ffff:10.77.0.255"),
    way("224.0.0.5"),
    way("ff02::5"),
    way("fe80::9"),
    way(f"::ffff:{SILENT4}", options=[V6ONLY]),
    way(SILENT4, options=[MARK]),
    way(SILENT6, options=[MARK]),
    way("10.78.2.1", bind=["10.77.0.1", 0]),
    way("fd78:2::1", bind=["fd77::1", 0]),
]


def test_no_way_there(watch, space):
    told, records = tried(watch, space, WITHOUT_A_WAY)
    assert None not in told and len(set(told)) >= 4
    assert errors(records) == told


def test_own_firewall(watch, space):
    # IPv4's connect() that does not block is woken at once (Linux 6.0); what blocks, and IPv6,
    # hears of it when the SYN is sent again, a second later
    ways = [
        way(address, port + offset, timeout_s=3)
        for offset, address in enumerate((SILENT4, f"::ffff:{SILENT4}"))
        for port in (7100, 7110, 7120, 7130)
    ]
    told, records = tried(watch, space, [*ways, way(SILENT6, 7103, timeout_s=3)])
    assert told[:4] == ["ECONNREFUSED", "EHOSTUNREACH", "ECONNREFUSED", "ENETUNREACH"]
    assert errors(records) == told
    results = ["refused", "unreachable", "refused", "unreachable"]
    assert [record["attempts"][0]["result"] for record in records[:4]] == results


def test_own_firewall_and_a_program_that_gives_up(watch, space):
    # the kernel knew, and would have said so at the next SYN
    told, records = tried(
        watch, space, [way(SILENT6, 7104, timeout_s=0.2), way(SILENT6, 7114, timeout_s=0.2)]
    )
    assert told == ["timeout", "timeout"]
    assert errors(records) == ["ECONNREFUSED", "EACCES"]


@pytest.mark.parametrize("timeout_s", [None, 2], ids=["blocks", "does-not"])
def test_no_free_local_port(watch, space, listener, timeout_s):
    with two_ports(space):
        addresses = ["127.0.0.1"] * 2 + ["::1"] * 2
        ways = [way(address, LISTENER, keep=True) for address in addresses]
        ways += [
            way(address, LISTENER, timeout_s=timeout_s)
            for address in ("127.0.0.1", "::1", "::ffff:127.0.0.1")
        ]
        told, records = tried(watch, space, ways)
    assert told == [None] * 4 + ["EADDRNOTAVAIL"] * 3
    failed = [record for record in records if record["state"] == "failed"]
    assert errors(failed) == ["EADDRNOTAVAIL"] * 3
    assert [record["attempts"][0]["us"] for record in failed] == [None] * 3


def test_a_bound_port_in_use(watch, space, listener):
    ways = []
    for address in ("127.0.0.1", "::1"):
        port = next(_fresh_ports)
        ways.append(way(address, LISTENER, options=[REUSE], bind=[address, port], keep=True))
        # its peer has this port already
        ways.append(way(address, LISTENER, options=[REUSE], bind=[address, port]))
    told, records = tried(watch, space, ways)
    assert told == [None, "EADDRNOTAVAIL"] * 2
    assert sorted(filter(None, errors(records))) == ["EADDRNOTAVAIL"] * 2


def test_a_socket_that_failed_otherwise_before(watch, space, listener):
    with two_ports(space):
        ways = [way("127.0.0.1", LISTENER, keep=True) for _ in range(2)]
        # refused from one of the two ports, which that peer has not taken
        ways.append(way("127.0.0.1", 9, keep=True))
        ways.append(way("127.0.0.1", LISTENER, again=True))
        told, records = tried(watch, space, ways)
    assert told == [None, None, "ECONNREFUSED", "EADDRNOTAVAIL"]
    assert sorted(filter(None, errors(records))) == ["EADDRNOTAVAIL", "ECONNREFUSED"]


@pytest.fixture
def denying():
    """The folder of a cgroup in which no program may connect."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    root = next(fields[1] for fields in mounts if fields[2] == "cgroup2")
    folder = Path(root, f"conmond-test-{os.getpid()}")
    folder.mkdir()
    kept = [os.open(folder, os.O_RDONLY)]
    try:
        for attach_type in (10, 11):
            program = bpf_syscall.load_program(
                "deny", 18, DENY, license="GPL", attach_type=attach_type
            )
            kept += [program, bpf_syscall.link_cgroup(program, kept[0], attach_type)]
        yield folder
    finally:
        for fd in kept:
            os.close(fd)
        folder.rmdir()


def test_a_cgroup_that_may_not_connect(watch, space, denying):
    ways = [way(SILENT4), way(SILENT6), way("127.0.0.1", 9, timeout_s=1)]
    child = space.popen([PYTHON, str(SCRIPT)], stdin=subprocess.PIPE)
    (denying / "cgroup.procs").write_text(str(child.pid))
    stdout, stderr = child.communicate("".join(f"{json.dumps(one)}\n" for one in ways))
    told = [json.loads(line) for line in stdout.splitlines()]
    assert told == ["EPERM"] * 3, stderr
    records = watch.daemon.wait_for(of_pids([child.pid]), 3)
    assert errors(records) == told
    assert {record["attempts"][0]["result"] for record in records} == {"denied"}


def test_ipv6_switched_off(watch):
    with netns.namespace() as space:
        for device in ("all", "default", "lo"):
            space.sysctl(f"net/ipv6/conf/{device}/disable_ipv6", 1)
        ways = [way("::1"), way("2001:db8::1"), way("::1", 10, timeout_s=1)]
        told, records = tried(watch, space, ways)
    assert told == ["EADDRNOTAVAIL"] * 3
    assert errors(records) == told
