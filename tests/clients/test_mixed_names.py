"""No connection under another one's name, however lookups and connections are mixed."""

import collections
import os
import sys

import pytest

from tests.lab import world
from tests.lab.daemon import of_pids
from tests.lab.programs import SCRIPTS
from tests.lab.servers import Behaviour

pytestmark = pytest.mark.client("ip")

# The long form, 10,000 of them, took 40 s: CONMOND_MIX=20,50,10
PROCESSES, THREADS, EACH = map(int, os.environ.get("CONMOND_MIX", "5,10,20").split(","))


def test_lookups_and_connections_never_mix(lab, watch):
    """Lookups by threads of processes for 40 names of two addresses, three tenths of them made by
    a pool's thread, a fifth of the answers used twice."""
    names = [
        lab.name(f"mix{number}", world.FAR4 if number % 2 else world.NEAR4, delay_s=0.001 * number)
        for number in range(40)
    ]
    near = lab.serve(Behaviour(), world.NEAR4, world.FAR4)
    script = str(SCRIPTS / "mixed_names.py")
    processes = [
        lab.here.popen(
            [sys.executable, script, str(seed), str(near.port), str(THREADS), str(EACH), *names]
        )
        for seed in range(PROCESSES)
    ]
    truth = collections.defaultdict(list)  # the kernel may give a port out again
    for process in processes:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        for line in said.splitlines():
            port, peer, name = line.split()
            truth[process.pid, int(port), peer].append(name)
    made = sum(map(len, truth.values()))
    assert made > 0.98 * PROCESSES * THREADS * EACH
    ours = of_pids(process.pid for process in processes)
    watch.daemon.wait_for(lambda r: ours(r) and r["peer"], made, timeout_s=20)
    records = watch.daemon.records(lambda r: ours(r) and r["peer"])
    assert len(records) == made
    wrong = []
    for record in records:
        names = truth[record["pid"], record["lport"], record["peer"]]
        if record["host"] not in (None, *names):
            wrong.append((record["host"], names))
    assert wrong == []
    named = sum(r["host"] is not None for r in records) / len(records)
    print(f"{len(records)} connections, {named:.1%} named, none wrong")
    assert named > 0.5  # twenty names of one address: whose answer a pool's was, nobody can tell
