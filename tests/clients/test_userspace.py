"""The userspace client against two witnesses: conmond, for the same connections, and curl."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.lab import world
from tests.lab.programs import PYTHON
from tests.lab.servers import Behaviour, Cut

pytestmark = pytest.mark.client("curl", "ip")
ROOT = Path(__file__).resolve().parents[2]
TIMES = ("dns_us", "sockconn_us", "tls_us", "txn_resp_us")
EQUAL = (
    "id", "state", "role", "pid", "tid", "comm", "exe", "uid", "netns", "host", "host_source",
    "laddr", "lport", "raddr", "rport", "family", "transport", "peer", "dns", "dns_disp",
    "dns_source", "error",
)  # fmt: skip


def probe(watch, *words, count=1):
    """Run the probe in the lab: the records it printed, and the daemon's of the same process."""
    argv = [PYTHON, "-m", "conmon", "probe", "--json", *words]
    seen = watch.run(argv, env={"PYTHONPATH": str(ROOT)}, count=count)
    mine = [json.loads(line) for line in seen.done.stdout.splitlines()]
    return mine, seen.records


def agree(mine, theirs, *, but=()):
    """Field by field: equal, and times within 5 % or 500 µs."""
    wrong = {
        key: (mine[key], theirs[key])
        for key in EQUAL
        if key not in but and mine[key] != theirs[key]
    }
    for key in TIMES:
        ours, its = mine[key], theirs[key]
        missing = (ours is None) != (its is None)
        if missing or (ours is not None and abs(ours - its) > max(500, its * 0.05)):
            wrong[key] = (ours, its)
    results = [[one["result"] for one in record["attempts"]] for record in (mine, theirs)]
    if results[0] != results[1] and "attempts" not in but:
        wrong["attempts"] = tuple(results)
    return wrong


@pytest.mark.parametrize("tls", [None, "1.2", "1.3"])
@pytest.mark.parametrize("address", [world.NEAR4, world.NEAR6, world.FAR4])
def test_success_agrees_with_the_daemon(watch, lab, tls, address):
    site = lab.serve(
        Behaviour(tls=lab.tls(tls) if tls else None, hello_delay_s=0.02, response_delay_s=0.04)
    )
    name = lab.name(f"us-{str(tls)[-1:].lower()}-{len(address)}", address, delay_s=0.015)
    url = f"{'https' if tls else 'http'}://{name}:{site.port}/"
    (mine,), (theirs,) = probe(watch, url, "--cacert", str(lab.ca_file))
    assert agree(mine, theirs) == {}
    assert mine["dns_us"] >= 15_000
    assert mine["txn_resp_us"] >= 40_000
    if tls:
        for key in ("version", "cipher", "sni", "resumed", "result"):
            assert mine["tls"][key] == theirs["tls"][key], key
    else:
        assert mine["prot_specific"] == theirs["prot_specific"]
    assert mine["turns"]["count"] == theirs["turns"]["count"] == 1
    sent = [record["tcp"]["bytes_sent"] for record in (mine, theirs)]
    assert 0 <= sent[1] - sent[0] <= 64  # the close notification


FAILURES = {
    "refused": lambda lab: f"http://{lab.name('us-refused', world.REFUSED4)}:9/",
    "refused-6": lambda lab: f"http://{lab.name('us-refused6', world.REFUSED6)}:9/",
    "no-name": lambda lab: "http://us-none.lab.test/",
    "no-route": lambda lab: f"http://{lab.name('us-noroute', world.NO_ROUTE4)}:80/",
    "unreachable": lambda lab: f"http://{lab.name('us-unreach', world.UNREACHABLE4)}:80/",
    "untrusted": lambda lab: "https://{}:{}/".format(
        lab.name("us-untrusted", world.NEAR4),
        lab.serve(Behaviour(tls=lab.untrusted.context()), world.NEAR4).port,
    ),
    "reset-in-tls": lambda lab: "https://{}:{}/".format(
        lab.name("us-reset", world.NEAR4),
        lab.serve(Behaviour(tls=lab.tls("1.3"), cut=Cut.RESET_AFTER_HELLO), world.NEAR4).port,
    ),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_failures_agree_with_the_daemon(watch, lab, kind):
    (mine,), (theirs,) = probe(watch, FAILURES[kind](lab), "--cacert", str(lab.ca_file))
    # What failed before it had an id has one of its maker's own.
    but = {"id", "laddr", "lport"} if theirs["peer"] is None else set()
    if kind == "no-name":
        but |= {"netns"} if mine["netns"] is None else set()
    assert agree(mine, theirs, but=but) == {}
    assert mine["state"] == "failed"
    assert mine["error"]
    if theirs["tls"]:
        assert mine["tls"]["result"] == theirs["tls"]["result"]


def test_it_agrees_with_curl(watch, lab):
    site = lab.serve(Behaviour(tls=lab.tls("1.3"), hello_delay_s=0.03, response_delay_s=0.05))
    name = lab.name("us-curl", world.FAR4, delay_s=0.02)
    url = f"https://{name}:{site.port}/"
    (mine,), _ = probe(watch, url, "--cacert", str(lab.ca_file))
    timers = "%{time_namelookup} %{time_connect} %{time_appconnect} %{time_starttransfer}"
    done = watch.run(
        ["curl", "-s", "-o", "/dev/null", "--cacert", str(lab.ca_file), "-w", timers, url]
    ).done
    lookup, connect, tls, first = (float(text) * 1e6 for text in done.stdout.split())
    for key, theirs in (
        ("dns_us", lookup),
        ("sockconn_us", connect - lookup),
        ("tls_us", tls - connect),
        ("txn_resp_us", first - tls),
    ):
        # two runs, over a link that is a process: a tenth or 3 ms
        assert abs(mine[key] - theirs) <= max(3_000, theirs * 0.1), (key, mine[key], theirs)


def test_take_gives_the_same_record_from_either_side(watch, lab):
    site = lab.serve(Behaviour(), world.NEAR4)
    script = """
import json, sys, conmon
sock, first = conmon.connect(sys.argv[1], int(sys.argv[2]))
for path in (sys.argv[3], "/nonexistent"):
    print(conmon.take(sock, path=path).to_json())
try: conmon.take(sock, path="/nonexistent")
except conmon.DaemonUnreachable: print('{"gone": true}')
"""
    seen = watch.run(
        [PYTHON, "-c", script, world.NEAR4, str(site.port), watch.daemon.socket],
        env={"PYTHONPATH": str(ROOT)},
    )
    theirs, mine, gone = (json.loads(line) for line in seen.done.stdout.splitlines())
    assert agree(mine, theirs) == {}
    assert gone == {"gone": True}
