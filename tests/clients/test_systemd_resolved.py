"""systemd-resolved, the real one, between the programs and the lab's resolver: through nss-resolve,
through its stub by the C library, and through its stub by programs that speak DNS themselves.

It runs in a mount namespace of its own, unpacked and never installed.
"""

from __future__ import annotations

import itertools
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.lab import world
from tests.lab.daemon import ROOT
from tests.lab.servers import Behaviour

pytestmark = pytest.mark.client("curl", "dig", "hey", "ip", "unshare")

UNPACKED = ROOT / ".venv/unpacked"
PLACES = (UNPACKED / "lib/systemd", UNPACKED / "usr/lib/systemd", Path("/usr/lib/systemd"))
RESOLVED = next((p / "systemd-resolved" for p in PLACES if (p / "systemd-resolved").exists()), None)
LIBRARIES = UNPACKED / "usr/lib/x86_64-linux-gnu"
SCRIPT = """
set -e
mount -t tmpfs none /run
mkdir -p /run/systemd/resolve /run/systemd/resolved.conf.d
cat > /run/systemd/resolved.conf.d/lab.conf <<END
[Resolve]
DNS={resolver}
DNSSEC=no
LLMNR=no
MulticastDNS=no
Cache=no
END
grep -v ^systemd-resolve: /etc/passwd > /run/passwd
grep -v ^systemd-resolve: /etc/group > /run/group
echo 'systemd-resolve:x:991:991::/:/usr/sbin/nologin' >> /run/passwd
echo 'systemd-resolve:x:991:' >> /run/group
echo 'hosts: {hosts}' > /run/nsswitch.conf
echo 'nameserver 127.0.0.53' > /run/resolv.conf
for file in passwd group nsswitch.conf resolv.conf; do mount --bind /run/$file /etc/$file; done
chown 991:991 /run/systemd/resolve
LD_LIBRARY_PATH={libraries}/systemd:{libraries} {resolved} > /run/words 2>&1 &
for _ in $(seq 100); do test -e /run/systemd/resolve/io.systemd.Resolve && break; sleep 0.05; done
test -e /run/systemd/resolve/io.systemd.Resolve || {{ cat /run/words >&2; exit 1; }}
export LD_LIBRARY_PATH={libraries}
set +e
{command} > /run/out 2>&1
kill $! && wait $! 2> /dev/null
exit 0
"""
NSS = "files resolve [!UNAVAIL=return] dns"
STUB = "files dns"
NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def site(lab):
    return lab.serve(Behaviour(), world.NEAR4)


def run(lab, hosts, argv):
    if RESOLVED is None:
        pytest.skip("systemd-resolved is neither unpacked (tools/setup) nor installed")
    script = SCRIPT.format(
        resolver=world.RESOLVER, hosts=hosts, resolved=RESOLVED, libraries=LIBRARIES,
        command=shlex.join(argv),
    )  # fmt: skip
    process = lab.here.popen(["unshare", "-m", "sh", "-c", script], stderr=subprocess.STDOUT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 0, said


def of(watch, host, count=1):
    watch.daemon.wait_for(lambda record: record["host"] == host, count)
    watch.settle()
    return watch.daemon.records(lambda record: record["host"] == host)


@pytest.mark.parametrize("hosts", [NSS, STUB], ids=["nss-resolve", "stub"])
def test_the_c_librarys_callers(lab, watch, site, hosts):
    name = lab.name(f"libc{next(NUMBERS)}", world.NEAR4, delay_s=0.050)
    run(lab, hosts, ["curl", "-s", f"http://{name}:{site.port}/"])
    [record] = of(watch, name)
    assert (record["comm"], record["dns_source"]) == ("curl", "getaddrinfo")
    assert record["dns"] == [world.NEAR4]
    assert 50_000 <= record["dns_us"] < 500_000


def test_a_resolver_of_ones_own_through_the_stub(lab, watch, site):
    name = lab.name(f"stub{next(NUMBERS)}", world.NEAR4, delay_s=0.050)
    run(lab, STUB, ["hey", "-n", "1", "-c", "1", f"http://{name}:{site.port}/"])
    [record] = of(watch, name)
    assert (record["comm"], record["dns_source"]) == ("hey", "resolved")
    assert record["dns"] == [world.NEAR4]
    assert 50_000 <= record["dns_us"] < 500_000


@pytest.mark.parametrize(
    ("hosts", "argv", "comm", "source"),
    [
        (NSS, ["curl", "-s", "http://{}/"], "curl", "getaddrinfo"),
        (STUB, ["curl", "-s", "http://{}/"], "curl", "getaddrinfo"),
        (STUB, ["hey", "-n", "1", "-c", "1", "http://{}/"], "hey", "resolved"),
    ],
    ids=["nss-resolve", "stub", "stub by itself"],
)
def test_a_name_that_is_not_there_fails_once_and_for_the_caller(
    lab, watch, hosts, argv, comm, source
):
    name = f"none{next(NUMBERS)}.{world.DOMAIN}"
    run(lab, hosts, [word.format(name) for word in argv])
    [record] = of(watch, name)
    assert (record["comm"], record["dns_source"], record["error"]) == (comm, source, "EAI_NONAME")
    assert record["state"] == "failed"
