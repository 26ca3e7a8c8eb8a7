"""Names with several addresses of which the first does not answer: one record, two attempts."""

import json

import pytest

from tests.clients.expectations import Between
from tests.lab import world
from tests.lab.programs import PYTHON, Asyncio, Curl, NodeHttps, Urllib, Wget
from tests.lab.servers import Behaviour

pytestmark = pytest.mark.client("curl", "ip", "node", "wget")

SOCKCONN = Between(world.RTT_US, world.RTT_US + world.LINK_LATE_US)
LIST_AND_CONNECT = """
import json, socket, sys
name, address, port = sys.argv[1:]
answers = socket.getaddrinfo(name, 1, type=socket.SOCK_STREAM)
print(json.dumps([answer[4][0] for answer in answers]))
socket.create_connection((address, int(port))).close()
"""
PROGRAMS = [Curl, Wget, Urllib, Asyncio, NodeHttps]
RACERS = {"curl": 200_000, "node": 250_000}  # these start the other family after so long


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_first_address_refuses(lab, watch, program):
    site = lab.serve(Behaviour(), world.FAR4)
    name = lab.name("first-refuses", world.REFUSED6, world.FAR4, delay_s=0.02)
    seen = watch.program(program(lab), name, site.port)
    assert seen.done.code == 0, seen.done.stderr
    record = seen.record
    assert_second_won(record, name)
    assert record["attempts"][0]["result"] == "refused"
    assert record["attempts"][0]["errno"] == "ECONNREFUSED"
    assert record["attempts"][1]["offset_us"] == Between(0, 20_000)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_first_address_is_silent(lab, watch, program):
    site = lab.serve(Behaviour(), world.FAR4)
    name = lab.name("first-silent", world.SILENT6, world.FAR4, delay_s=0.02)
    seen = watch.program(program(lab), name, site.port)
    assert seen.done.code == 0, seen.done.stderr
    record = seen.record
    assert_second_won(record, name)
    first, second = record["attempts"]
    if program.name in RACERS:
        assert first["result"] == "abandoned"
        # Timers in these programs are lax; a swap or a wrong clock is off by far more.
        assert second["offset_us"] == Between(
            RACERS[program.name] * 0.95, RACERS[program.name] + 50_000
        )
    else:
        assert (first["result"], first["errno"]) == ("timeout", "ETIMEDOUT")
        assert second["offset_us"] == Between(1_900_000, 3_500_000)


def test_every_address_refuses(lab, watch):
    name = lab.name("all-refuse", world.REFUSED6, world.REFUSED4)
    seen = watch.program(Urllib(lab), name, world.CLOSED_PORT)
    record = seen.record
    assert record["state"] == "failed"
    assert record["error"] == "ECONNREFUSED"
    assert record["raddr"] == world.REFUSED4  # the last one tried
    assert record["peer"] is None
    assert record["sockconn_us"] is None
    assert [one["result"] for one in record["attempts"]] == ["refused", "refused"]
    assert record["dns"] == [world.REFUSED6, world.REFUSED4]


def test_whole_answer_list_is_kept_in_its_order(lab, watch):
    others = [f"10.66.3.{number}" for number in range(30, 93)]
    name = lab.name("long-list", world.FAR4, *others)
    site = lab.serve(Behaviour(), world.FAR4)
    seen = watch.run([PYTHON, "-c", LIST_AND_CONNECT, name, world.FAR4, str(site.port)])
    order = json.loads(seen.done.stdout)
    assert len(order) == 64
    record = seen.record
    assert record["dns"] == order
    assert record["host"] == name


def assert_second_won(record, name):
    """The IPv4 address answered; its own connect time is the figure, not the race's."""
    assert record["state"] == "closed"
    assert record["error"] is None
    assert record["host"] == name
    assert record["dns_us"] == Between(20_000, 40_000)
    assert set(record["dns"]) > {world.FAR4}
    assert record["peer"] == record["raddr"] == world.FAR4
    assert record["family"] == "ipv4"
    assert len(record["attempts"]) == 2
    first, second = record["attempts"]
    assert first["raddr"] in record["dns"]
    assert first["raddr"] != world.FAR4
    assert first["offset_us"] == 0
    assert (second["raddr"], second["result"], second["errno"]) == (world.FAR4, "ok", None)
    assert second["us"] == record["sockconn_us"] == SOCKCONN
