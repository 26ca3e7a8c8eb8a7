"""Who connected: short lives, many threads, shared addresses, other namespaces."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clients.expectations import Within
from tests.lab import netns, world
from tests.lab.programs import PYTHON, SCRIPTS, Curl, run, run_many
from tests.lab.resolver import Name, Resolver
from tests.lab.servers import Behaviour, Server

pytestmark = pytest.mark.client("bash", "chroot", "curl", "ip", "node", "unshare")

PRIME = 23
# bash is its own small client: it resolves, connects, asks and is gone within milliseconds
SHORT_LIVED = r"""
exec 3<>"/dev/tcp/$0/$1"
printf 'GET / HTTP/1.1\r\nConnection: close\r\n\r\n' >&3
read -r -u 3
"""


def test_process_that_lives_five_milliseconds(lab, watch):
    name = lab.name("short", world.NEAR4)
    site = lab.serve(Behaviour(), world.NEAR4)
    argv = ["bash", "-c", SHORT_LIVED, name, str(site.port)]
    run(lab.here, argv)  # from the disk to memory
    site.servers[world.NEAR4].witnesses.clear()
    seen = watch.run(argv)
    record = seen.record
    assert seen.done.code == 0, seen.done.stderr
    assert record["comm"] == "bash"
    assert record["exe"] == str(Path("/bin/bash").resolve())
    assert record["host"] == name
    assert record["txn_resp_us"] is not None
    assert record["duration_us"] < 20_000  # 2 to 5 ms on a machine that does nothing else


@pytest.mark.parametrize("addresses", ["one-each", "one-for-all"])
def test_threads_of_one_process_keep_their_names(lab, watch, addresses):
    loopback = [f"10.66.8.{number}" for number in range(1, PRIME + 1)]
    if addresses == "one-for-all":
        loopback = [world.NEAR4] * PRIME
    else:
        lab.here.add_loopback(*loopback)
    site = lab.serve(Behaviour(), *dict.fromkeys(loopback))
    names = [
        lab.name(f"thread{number}", address, delay_s=0.05)
        for number, address in enumerate(loopback)
    ]
    argv = [PYTHON, str(SCRIPTS / "many_names.py"), str(site.port), *names]
    seen = watch.run(argv, count=PRIME)
    assert seen.done.code == 0, seen.done.stderr
    asked = {int(lport): name for lport, name in json.loads(seen.done.stdout).items()}
    assert {record["lport"]: record["host"] for record in seen.records} == asked
    assert {record["dns_match"] for record in seen.records} == {"thread"}
    assert len({record["tid"] for record in seen.records}) == PRIME
    assert len({record["id"] for record in seen.records}) == PRIME


@pytest.mark.parametrize("tls", [None, "1.2", "1.3"])
def test_two_names_with_one_address_in_node(lab, watch, tls):
    names = [lab.name(f"twin{number}", world.NEAR4, delay_s=0.05) for number in range(2)]
    site = lab.serve(Behaviour(tls=lab.tls(tls) if tls else None), world.NEAR4)
    urls = [f"{'https' if tls else 'http'}://{name}:{site.port}/" for name in names]
    script = str(SCRIPTS / "two_names.mjs")
    seen = watch.run(["node", script, str(lab.ca_file), *urls], count=2)
    assert seen.done.code == 0, seen.done.stderr
    asked = {int(lport): name for lport, name in json.loads(seen.done.stdout).items()}
    assert {record["lport"]: record["host"] for record in seen.records} == asked


@pytest.mark.parametrize("parallel", [False, True], ids=["in-turn", "parallel"])
@pytest.mark.parametrize("tls", [None, "1.3"])
def test_two_names_with_one_address_in_curl(lab, watch, tls, parallel):
    names = [lab.name(f"pair{number}", world.NEAR4, delay_s=0.05) for number in range(2)]
    site = lab.serve(Behaviour(tls=lab.tls(tls) if tls else None), world.NEAR4)
    urls = [f"{'https' if tls else 'http'}://{name}:{site.port}/" for name in names]
    options = ["--parallel", "--parallel-immediate"] if parallel else []
    seen = watch.run(Curl(lab).to_urls(*urls, tls=tls, options=options), count=2)
    assert seen.done.code == 0, seen.done.stderr
    asked = {
        said["local_port"]: said["url_effective"].split("/")[2].partition(":")[0]
        for said in map(json.loads, seen.done.stdout.splitlines())
    }
    assert {record["lport"]: record["host"] for record in seen.records} == asked


def test_prime_number_of_processes(lab, watch):
    names = [lab.name(f"process{number}", world.NEAR4) for number in range(PRIME)]
    site = lab.serve(Behaviour(tls=lab.tls("1.3")), world.NEAR4)

    def ours(record):
        return (record["netns"], record["rport"]) == (lab.here.inode, site.port)

    done = run_many(lab.here, [Curl(lab).argv(name, site.port, "1.3") for name in names])
    pids = {one.pid: name for one, name in zip(done, names, strict=True)}
    watch.daemon.wait_for(ours, PRIME)
    watch.settle()
    records = watch.daemon.records(ours)
    assert len(records) == PRIME
    assert {record["pid"]: record["host"] for record in records} == pids


def test_connections_in_turn_are_all_counted(lab, watch):
    site = lab.serve(Behaviour(), world.NEAR4)
    url = f"http://{world.NEAR4}:{site.port}/"
    script = str(SCRIPTS / "urllib_get.py")
    argv = [PYTHON, script, url, "-", str(lab.ca_file), str(PRIME)]
    seen = watch.run(argv, count=PRIME)
    lports = [witness.peer[1] for witness in site.servers[world.NEAR4].witnesses]
    assert sorted(record["lport"] for record in seen.records) == sorted(lports)


def test_other_namespaces_with_their_own_libc(lab, watch, tmp_path):
    root = minimal_root(tmp_path / "root", "curl")
    with netns.namespace() as island:
        name = f"island.{world.DOMAIN}"
        resolver = Resolver(island, "127.0.0.1", {name: Name(a=("127.0.0.1",), delay_s=0.15)})
        server = Server(island, "127.0.0.1", 8000, Behaviour(response_delay_s=0.15))
        curl = ["/bin/curl", "--silent", "--show-error", f"http://{name}:8000/"]
        argv = ["unshare", "--mount", "--pid", "--fork", "chroot", str(root), *curl]
        try:
            # The first user of a library that nobody has used before: it may ask before the probe
            # is placed, and the wire has its name all the same.
            seen = watch.run(
                argv,
                space=island,
                wanted=lambda record: record["netns"] == island.inode,
            )
        finally:
            server.close()
            resolver.close()
    assert seen.done.code == 0, seen.done.stderr
    record = seen.record
    assert record["comm"] == "curl"
    assert record["exe"].endswith("/bin/curl")
    assert record["pid"] != seen.done.pid  # the number on the host, not the inner 1
    assert record["pid"] > 1
    assert record["host"] == name
    assert record["dns"] == ["127.0.0.1"]
    assert record["dns_source"] in ("getaddrinfo", "wire")
    assert record["dns_us"] == Within(150_000)
    assert record["txn_resp_us"] == Within(150_000)


def minimal_root(root, program):
    """A tree with one program, copies of its libraries, and resolver settings."""
    found = shutil.which(program, path=netns.CLEAN_ENV["PATH"])
    listing = subprocess.run(["ldd", found], capture_output=True, text=True, check=True).stdout
    libraries = [word for word in listing.split() if word.startswith("/")]
    for source, place in [(found, f"/bin/{program}"), *zip(libraries, libraries, strict=True)]:
        target = root / place.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    etc = root / "etc"
    etc.mkdir()
    (etc / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    (etc / "nsswitch.conf").write_text("hosts: dns\n")
    return root
