"""Names of one address that nothing tells apart but what the requests ask for."""

import re

import pytest

from tests.lab import world
from tests.lab.programs import PYTHON, SCRIPTS
from tests.lab.servers import Behaviour

pytestmark = pytest.mark.client("curl", "ip")


@pytest.mark.parametrize("address", [world.FAR4, world.FAR6], ids=["ipv4", "ipv6"])
def test_a_request_tells_whose_connection_it_is(lab, watch, address):
    names = [lab.name(f"asked{number}", address, delay_s=0.001) for number in range(5)]
    site = lab.serve(Behaviour(), address)
    count = 7 * len(names)
    seen = watch.run([PYTHON, str(SCRIPTS / "asked_names.py"), str(site.port), *names], count=count)
    assert seen.done.code == 0, seen.done.stderr
    by_port = {record["lport"]: record for record in seen.records}
    for line in seen.done.stdout.splitlines():
        lport, name, form = line.split()
        record = by_port[int(lport)]
        told = record["host"], record["host_source"]
        if form == "nobody":
            assert told == (None, None)
            assert record["dns_disp"] is None  # there was a lookup, but nobody knows which
        elif form == "other":
            assert told == (f"other.{name}", "http")
        else:
            assert told == (name, "http"), form
            assert (record["dns"], record["dns_disp"]) == ([address], 1)
            assert "host" not in record["prot_specific"]


def test_curl_asks_for_many_names_at_once(lab, watch):
    names = [lab.name(f"at-once{number}", world.NEAR4) for number in range(12)]
    site = lab.serve(Behaviour(), world.NEAR4)
    urls = [f"http://{name}:{site.port}/" for name in names]
    # a port each would tell, too: the local one is printed
    form = "%{local_port} %{url}\\n"
    argv = ["curl", "-sZ", "-w", form, *(x for url in urls for x in ("-o", "/dev/null", url))]
    seen = watch.run(argv, count=len(names))
    asked = dict(re.findall(r"(\d+) http://([^:]+)", seen.done.stdout))
    assert {str(r["lport"]): r["host"] for r in seen.records} == asked
    assert len(asked) == len(names)


def test_another_host_than_the_one_looked_up_is_told_beside_it(lab, watch):
    name = lab.name("behind", world.NEAR4)
    site = lab.serve(Behaviour(), world.NEAR4)
    argv = ["curl", "-s", "-H", "Host: www.example.test", f"http://{name}:{site.port}/"]
    record = watch.run(argv).record
    assert (record["host"], record["host_source"]) == (name, "lookup")
    assert record["prot_specific"]["host"] == "www.example.test"


def test_an_address_in_the_request_is_no_name(lab, watch):
    name = lab.name("named-before", world.NEAR4)
    site = lab.serve(Behaviour(), world.NEAR4)
    urls = [f"http://{host}:{site.port}/" for host in (name, world.NEAR4)]
    argv = ["curl", "-s", *urls, "-H", "Connection: close"]
    seen = watch.run(argv, count=2)
    assert [r["host"] for r in sorted(seen.records, key=lambda r: r["start"])] == [name, None]
