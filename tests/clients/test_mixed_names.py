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


@pytest.fixture(scope="module")
def names(lab):
    """Forty, of two addresses."""
    return [
        lab.name(f"mix{number}", world.FAR4 if number % 2 else world.NEAR4, delay_s=0.001 * number)
        for number in range(40)
    ]


@pytest.fixture(scope="module")
def site(lab):
    return lab.serve(Behaviour(), world.NEAR4, world.FAR4)


def mixed(lab, watch, argvs):
    """Run them at once. How many connections they made, and which share of them was named; none
    may have a wrong name."""
    processes = [lab.here.popen(argv) for argv in argvs]
    truth = collections.defaultdict(list)  # the kernel may give a port out again
    for process in processes:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        for line in said.splitlines():
            port, peer, name = line.split()
            truth[process.pid, int(port), peer].append(name)
    made = sum(map(len, truth.values()))
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
    print(f"{made} connections, {named:.1%} named, none wrong")
    return made, named


def test_lookups_and_connections_never_mix(lab, watch, names, site):
    """Lookups by the threads that connect, three tenths of them made by a pool's thread, a fifth
    of the answers used twice."""
    script = str(SCRIPTS / "mixed_names.py")
    argvs = [
        [sys.executable, script, str(seed), str(site.port), str(THREADS), str(EACH), *names]
        for seed in range(PROCESSES)
    ]
    made, named = mixed(lab, watch, argvs)
    assert made > 0.98 * PROCESSES * THREADS * EACH
    # twenty names of one address: whose answer a pool's was, nobody can tell
    assert named > 0.4


def test_threads_that_share_all_work_have_no_wrong_names(lab, watch, names, site):
    """Any thread looks up, any connects: pools of 2 to 16."""
    script = str(SCRIPTS / "shared_names.py")
    count = THREADS * EACH
    argvs = [
        [sys.executable, script, str(threads), str(site.port), str(threads), str(count), *names]
        for threads in (2, 4, 8, 16)
    ]
    made, _ = mixed(lab, watch, argvs)
    assert made > 0.98 * 4 * count
